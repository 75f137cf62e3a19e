"""What a session is and does: plain Python, pure; the time is always an argument."""
