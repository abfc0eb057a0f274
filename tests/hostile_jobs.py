"""What a hostile job does to the directory that it shares with its server: pieces of shell, none of which prints
anything or fails."""

BOX = "/.fastlane/box"

ATTACKS = {
    "a file in place of the record": f": >{BOX}/log",
    "a directory in place of the record": f"rm -rf {BOX}/log; mkdir {BOX}/log; : >{BOX}/log/file",
    "a link that is too long in place of the record": "n=a; for i in $(seq 11); do n=$n$n; done; "
    f"rm -rf {BOX}/log; ln -s /$n {BOX}/log",
    "a deep tree": f"(cd {BOX} && mkdir deep && cd deep && i=0 && "
    "while [ $i -lt 1100 ]; do mkdir d && cd d || break; i=$((i+1)); done)",
    "many files": f"(mkdir {BOX}/many && cd {BOX}/many && seq 1 3000 | xargs touch)",
    "a large file": f"head -c 20000000 /dev/zero >{BOX}/fill",
    "a directory that is closed": f"mkdir {BOX}/keep && : >{BOX}/keep/file && chmod 0 {BOX}/keep",
    "a setuid file": f"cp /bin/busybox {BOX}/sh && chmod 4777 {BOX}/sh",
    "devices, pipes and sockets": f"mknod {BOX}/b b 8 0; mknod {BOX}/c c 1 3; mkfifo {BOX}/p; chmod 0 {BOX}/p",
    "links out": f"ln -s / {BOX}/root; ln -s .. {BOX}/up; ln /bin/busybox {BOX}/hard",
    "odd names": f"(cd {BOX} && "
    "for n in -rf ' ' '*' box-1 $(head -c 255 /dev/zero | tr '\\\\0' n); do mkdir -- \"$n\"; done)",
    "foreign owners": f"mkdir {BOX}/theirs && : >{BOX}/theirs/file && chown -R 54321:54321 {BOX}/theirs",
    "a descriptor that is kept": f"exec 9>{BOX}/held && head -c 1000000 /dev/zero >&9",
    # The last one: from then on a server of a user can neither move the directory nor delete anything in it.
    "a directory of another owner": f"chown 0:0 {BOX} && chmod 755 {BOX}",
}

# The shell ends with the first redirection that fails, unless it is in a shell of its own.
ALL = "; ".join(f"({attack}) 2>/dev/null" for attack in ATTACKS.values())
