"""What both transports share: the way to the server, time-outs, look-ups, connections, and foreign errors."""
