"""The commands of `fastlane`, a module for each kind; the table COMMANDS in the package above names them."""
