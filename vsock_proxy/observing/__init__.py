"""What is seen of it from outside: the scoreboard, the log, what they say."""
