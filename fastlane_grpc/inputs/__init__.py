"""Contents of inputs: their files in the data directory, and the archive by which an engine unpacks them."""

from fastlane_grpc.inputs.archive import ArchiveInvalid, archive_of, check_archive
from fastlane_grpc.inputs.files import InputFiles, WrongChecksum

__all__ = ["ArchiveInvalid", "InputFiles", "WrongChecksum", "archive_of", "check_archive"]
