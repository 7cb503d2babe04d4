"""What inference requests came, how long they took and what they were answered: counted, kept, added up. Ray-free."""
