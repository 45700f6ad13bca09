"""A circuit watched while somebody else's Trainer trains: callbacks for Hugging Face, TRL and Lightning."""
