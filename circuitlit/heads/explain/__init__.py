"""What a circuit does, as a reader sees it: example prompts with what is said on them, and the heads that matter."""
