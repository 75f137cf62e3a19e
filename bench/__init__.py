"""Measures the service against the budgets of its design, all parts in one run on one machine.

``make bench``, or ``python -m bench --only scripts,memory``. Everything that is a
ratio is measured against its counterpart in the same run, in alternating rounds,
so that a slow or busy machine slows both sides.
"""
