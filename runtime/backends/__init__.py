"""Libraries that run a network, one file each, behind the protocol of `protocol.py`."""
