"""Inputs and output of the client scripts: `python SCRIPT URL CHAT_MODEL EMBEDDING_MODEL`.

URL is the address of the server without `/v1`. Each script passes its functions to `report`, which prints their results
as one JSON object.
"""

import json
import sys
import time
import traceback
import urllib.request

URL, CHAT_MODEL, EMBEDDING_MODEL = sys.argv[1:4]
COUNT = "Count from 1 to 20."
WEATHER_QUESTION = "What is the weather in Paris?"
LONG_TEXT = "word " * 5000
CITY = {
    "type": "object",
    "required": ["city"],
    "additionalProperties": False,
    "properties": {"city": {"type": "string", "maxLength": 12}},
}
PERSON = {
    "type": "object",
    "required": ["name", "age"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
    },
}


def read_metrics():
    """Return the number of generated tokens, and of running and waiting requests."""
    with urllib.request.urlopen(URL + "/metrics") as response:
        lines = response.read().decode().splitlines()
    values = {"completion": 0.0, "running": 0.0, "waiting": 0.0}
    for line in lines:
        for name in values:
            if line.startswith((f"edgechat_{name}_tokens_total ", f"edgechat_requests_{name}{{")):
                values[name] += float(line.split()[-1])
    return values


def wait_until_idle():
    """Wait until the server has no requests, for two minutes at most, and return its metrics."""
    deadline = time.monotonic() + 120
    while (metrics := read_metrics())["running"] + metrics["waiting"] and time.monotonic() < deadline:
        time.sleep(0.02)
    return metrics


def measure_cancel(start_and_cancel):
    """Return the requests that remain after `start_and_cancel`, and how many tokens they generated."""
    before = wait_until_idle()
    was_running = start_and_cancel()
    after = wait_until_idle()
    return {
        "was_running": was_running,
        "remaining": after["running"] + after["waiting"],
        "n_tokens": after["completion"] - before["completion"],
    }


def catch(function):
    """Return type, status and text of the exception that `function` raises."""
    try:
        result = function()
    except Exception as error:
        kinds = [kind.__name__ for kind in type(error).__mro__]
        status = getattr(error, "status_code", None)
        return {"type": kinds[0], "bases": kinds[1:], "status": status, "text": str(error)}
    return {"type": None, "result": repr(result)}


def report(*functions):
    """Run the functions and print their results by name."""
    results = {}
    for function in functions:
        try:
            results[function.__name__] = function()
        except Exception:
            results[function.__name__] = {"failed": traceback.format_exc()}
    print(json.dumps(results))
