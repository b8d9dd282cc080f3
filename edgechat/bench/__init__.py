"""Workloads, paired runs, reports; may drive anything below."""
