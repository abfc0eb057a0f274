"""`python -m fastlane_grpc.cli`."""

from fastlane_grpc.cli import main

main()
