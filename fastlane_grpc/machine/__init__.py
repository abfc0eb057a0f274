"""What the machine and this process have to give: disk, open files, addresses; and what to do when it is used up."""
