"""Blocks move: requests, the Device protocol, and Devices stacked on devices down to one logical unit of one session."""
