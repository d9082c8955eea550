"""What a plan will take, from a rehearsal of a part of it and a price sheet."""
