"""Attribution methods, one function a file, each returning `EdgeScores`."""
