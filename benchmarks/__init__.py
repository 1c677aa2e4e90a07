"""Measures speed, memory and time to a bound.  The program itself needs nothing of this."""
