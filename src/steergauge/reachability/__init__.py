"""Is there a prompt? Searches over tokens for one that makes a state or an output."""
