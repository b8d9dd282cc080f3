"""Choose one of several replies to the same prompt: by a vote on their answers, by likelihood, or by comparison.

Pure functions and values; the callers (chat, server, benchmark) generate the replies and end those that are not needed.
"""
