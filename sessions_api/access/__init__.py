"""Who calls, by what they show: access keys, and tokens that open one session."""
