"""Resources of the machine and of this process: disk, open files, addresses, and shortages of them."""
