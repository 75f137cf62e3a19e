"""Alarms: what a session does when its time comes, in the partitions this replica keeps."""
