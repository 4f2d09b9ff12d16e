"""Bytes move: the data plane, one TCP connection of a session, opening a session. Here the keeper of a session will live."""
