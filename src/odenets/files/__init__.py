"""Files that are whole or absent, and the folder of a run. Standard library only."""

from odenets.files.lock import RunFolderError, folder_errors, lock_folder
from odenets.files.run_folder import check_writable, differences, free_run_folder, open_run_folder
from odenets.files.whole import (
    DamagedFolderError,
    append_line,
    read_directory,
    remove_leftovers,
    replace_directory,
    write_atomically,
    write_directory,
)

__all__ = [
    "DamagedFolderError",
    "RunFolderError",
    "append_line",
    "check_writable",
    "differences",
    "folder_errors",
    "free_run_folder",
    "lock_folder",
    "open_run_folder",
    "read_directory",
    "remove_leftovers",
    "replace_directory",
    "write_atomically",
    "write_directory",
]
