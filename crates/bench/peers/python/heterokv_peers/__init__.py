"""KV caches of other programs, measured on the windows and by the metrics of `heterokv eval`.

`python -m heterokv_peers.llama_cpp` and `python -m heterokv_peers.kvpress` read one request on stdin and write
one JSON object a line on stdout; `protocol` says what they are made of.
"""
