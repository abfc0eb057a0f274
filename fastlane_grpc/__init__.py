"""fastlane: a queue whose workers are containers."""
