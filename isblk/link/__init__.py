"""Bytes move: the data plane, one TCP connection of a session, and opening a session at a portal. Here the keeper of a session will live."""
