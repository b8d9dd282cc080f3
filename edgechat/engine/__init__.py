"""One process that generates: protocol, decode loop, host (child side), client (parent side).

`protocol` and `client` may be imported anywhere; `host` and `generation` load native code.
"""
