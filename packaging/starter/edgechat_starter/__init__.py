"""Data only: the starter model of edgechat lies in this directory."""
