"""fastlane against the limit of what it stands on: each figure is a ratio, of two things measured in turn in the same
run."""
