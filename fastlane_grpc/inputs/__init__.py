"""Files for containers and of containers: the contents of inputs, and the archives that go to an engine and come from
it."""

from fastlane_grpc.inputs.archive import ArchiveInvalid, archive_of, check_archive, rewritten
from fastlane_grpc.inputs.files import InputFiles, WrongChecksum

__all__ = ["ArchiveInvalid", "InputFiles", "WrongChecksum", "archive_of", "check_archive", "rewritten"]
