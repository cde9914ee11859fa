"""Claims of the room attention."""
