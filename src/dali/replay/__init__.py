"""Replaying recorded routing: the live runs' policies on a modelled clock, computing nothing, beside provable bounds."""
