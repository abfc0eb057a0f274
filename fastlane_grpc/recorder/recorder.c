/* The recorder: PID 1 of a container. The recorder runs the command, and writes the command's output into the record.
 *
 *     recorder --execution ID [--limit BYTES] [--ulimit NAME=SOFT:HARD]… [--cap-drop NAME]… [--secrets NUMBER]
 *              [--stdin FILE] [--await-relay SECONDS] [--node-grace SECONDS] [--keep WORD]… BOX -- COMMAND [ARGUMENT…]
 *     recorder --salvage BYTES
 *     recorder --version
 *     recorder --probe      prints more than the smallest limit
 *
 * BOX/wait is there until the start is granted, on a node where another container makes the record. The recorder waits
 * until that file is gone.
 *
 * BOX/log is the record, an empty file that the server made. The recorder locks the record for as long as it lives,
 * and removes the name BOX/log before anything else. So only one of all recorders that are offered a record runs its
 * command. A reader that finds the lock free knows the end: an empty file means that the command never ran, a trailer
 * that it ended, anything else that the recorder was killed. record/format.py describes the layout to the byte.
 *
 * The command does not run before the server has removed BOX, a directory on the server's disk. If no server removes
 * it within two seconds, the command runs all the same.
 *
 * BOX/secrets, if there are any, has variables for the command, each with a NUL at its end. The recorder reads the file
 * and removes it before it claims the record, and masks their values in the output (masking.h). What is stored, and
 * counted, is the masked output.
 *
 * BOX/orders, if there is one, is a FIFO by which the server sends signals to the recorder of another machine: each byte
 * is the number of a signal. The recorder opens it before it claims the record, and its name is gone with BOX.
 *
 *   await_start -> claim -> begin -> hand_off -> launch -> follow -> drain -> finish
 *                            START   BOX gone   fork     |  take: pipe -> frame -> record   trailer
 *                                                        |  serve_signals: forward, reap, hard stop
 *
 * A full or failing disk blocks: the command waits on its pipe until there is room again. Output is lost only by a hard
 * stop, which waits for room for three seconds, by a SIGKILL to the recorder, and by a limit on the size of the
 * recorder's files (RLIMIT_FSIZE) that the recorder may not raise. In the last case the recorder kills the command, as
 * no more output could ever be stored.
 *
 * A hard stop is signal 44, or an order with this number, while only the owner of the record may write to it: the server changes the mode of the
 * record before it sends the signal. The command can send the signal, but has no access to the record.
 *
 * A relay copies the record from a node of a cluster. The node starts it again only while this container runs. So after
 * the trailer the recorder unlocks the record, and waits until the relay has marked it as copied: by its execute bit
 * for others. At most for the time of --await-relay.
 *
 * The words of --keep are a program with its arguments, which the recorder runs when the trailer is stored. Its output
 * goes to BOX/outputs, which the recorder opens before it claims the record: what the job wants to keep of its files.
 * The relay waits for it, as the record is locked meanwhile.
 *
 * A node that ends a container sends SIGTERM, and then waits for as long as the relay may deliver. So --node-grace is the
 * time after which the recorder makes a hard stop by itself.
 *
 * BOX/stdout, stderr, taken and lost, if they are there, are FIFOs that the relay holds open, too. The first two are
 * the pipes of the command. So what is in them outlives a recorder that is killed. What the recorder takes from them
 * goes through `taken`, and leaves it only when it is in the record (see take_held). `lost` has a byte once this is no
 * longer so. With --salvage the relay has the rest stored in the record; BYTES is the limit of the record, 0: none. The
 * record is descriptor 3, and the FIFOs are 4 to 7.
 *
 * Limits of resources and dropped capabilities are those of the command: the recorder keeps its own, as it has to store
 * what the command prints, and to end all processes of the container.
 *
 * Exit status: the command's; 128 + the signal that killed the command; 127 not found, 126 not executable. The
 * recorder's own are 117: the command was killed, and the trailer could not be stored; 118: the recorder could not
 * start; 119: the record was claimed before. With 118 and 119 the command did not run. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/magic.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "masking.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "a record is little-endian"
#endif

enum { CANNOT_STORE = 117, CANNOT_BEGIN = 118, CLAIMED_BEFORE = 119, NOT_EXECUTABLE = 126, NOT_FOUND = 127 };
enum { HARD_STOP = 44 };                          /* by number, as C libraries differ on SIGRTMIN */
enum { BLOCK = 65536, PIPE = 262144, TAKEN_PIPE = 131072 }; /* bytes */
enum { STDOUT, STDERR, SYSTEM, SOURCES };         /* in the record their numbers are one more */
enum { START = 16, GAP = 17, TRAILER = 18 };      /* kinds of frames */
enum { BYTES_ARE_MISSING = 1 };                   /* a flag of a source */
enum { BY_SIZE_LIMIT = 1, BY_ENGINE = 3, BY_STORE = 4 }; /* causes of gaps, as in the contract */
#define UNKNOWN UINT64_MAX                        /* bytes of a gap */
#define EVER UINT64_MAX

#define MS 1000000ull                             /* times are nanoseconds */
#define WAIT_FOR_ROOM (50 * MS)
#define START_LOOKS (5 * MS)                      /* between two looks whether the start is granted */
#define HAND_OFF_WAITS (2000 * MS)                /* for the server to remove BOX */
#define STOP_WAITS (3000 * MS)                    /* for room, after a hard stop */
#define FINISH_WAITS (30000 * MS)                 /* for room for the trailer, after a hard stop */
#define SILENCE (10000 * MS)                      /* of a pipe that stays open though everything was killed */
/* A flood is a number of reads that each come within a millisecond of the last. Its pieces may gather for a while. */
enum { FLOOD = 16, LARGE_PIECE = 32768 };
#define GATHER (MS / 10)
#define HOLD_BACK (100 * MS)                      /* output that may be the beginning of a secret */
enum { MOST_SECRET_BYTES = 1 << 20 };

/* ---------------------------------------------------------------------------------------------------------- the record */

struct source { uint64_t offset, newlines, missing, gap_sequence; uint32_t crc, flags; };

struct block_header {
    uint8_t magic[4];
    uint32_t check;
    uint16_t version, size;
    uint32_t punched_from;
    uint64_t number, time, next_sequence, first_byte_time;
    struct source sources[SOURCES];
};

struct frame_header { uint64_t time; uint16_t length; uint8_t kind, zero; uint32_t check; };

/* The most bytes of one write: a frame, and the block's header before the first frame of a block. */
static struct {
    struct block_header block;
    struct frame_header frame;
    uint8_t payload[BLOCK - sizeof(struct block_header) - sizeof(struct frame_header)];
} out;

_Static_assert(sizeof(struct block_header) == 168 && sizeof(struct frame_header) == 16 && sizeof out == BLOCK, "the layout of the record");

/* The record up to its last whole frame. */
static int record = -1;
static uint64_t relay_wait; /* how long a relay may take to copy the record after the end; 0: there is none */
static uint64_t size, frame_time, sequence, first_byte_time;
static struct source stored[SOURCES];

/* The bytes from the pipes, stored or not: offset, newlines and crc of each source. */
static struct source seen[SOURCES];

/* Why output is only counted and not stored any more; 0: it is stored. */
static int not_stored_by;

/* The limit in blocks; 0: none. The first `head` blocks stay, and the newest `tail` of the others, from `oldest` on. */
static uint64_t head, tail, oldest;
static uint64_t head_end[SOURCES], oldest_begin[SOURCES];   /* offsets */
/* The bytes of stdout and stderr in each of the newest `tail` blocks after the head, by block number modulo `tail`. What
 * leaves the record is counted by these: a relay may have punched the blocks out before, with their headers. A salvage
 * counts nothing. */
static uint16_t (*tail_bytes)[2];

/* ------------------------------------------------------------------------------------------------------- the command */

static int signals = -1;                          /* a signalfd, so that no signal interrupts a call */
static int orders = -1;                           /* a FIFO with numbers of signals; -1: there is none */
static int pipes[2] = {-1, -1}, exec_failure = -1;
static pid_t child;
static bool ended, hard_stopped, cut_off, finishing; /* cut off: killed, as nothing can be stored any more */
static int status, exec_error, told; /* told: the last signal from outside */
static uint64_t start_time, end_time, blocked, give_up = EVER;

/* The program that keeps files of the container, and its output; see --keep. */
static char *keep[80];
static int keep_words, keep_file = -1;
static pid_t keeper;
static bool kept;
static unsigned node_grace; /* seconds; 0: the node waits for the command */
static bool node_told;

/* Variables of the command, each with a NUL at its end. Their bytes are forgotten once the command has them. */
static char *secrets;
static size_t secrets_size;
static int secrets_expected;
static struct stream streams[2];
static uint64_t held_since[2], taken_bytes; /* from the pipes */

/* The FIFOs that a relay holds open, too; -1: there are none. `holds` says whether what comes through them is kept. */
static struct { int readers[2], writers[2], taken, lost, copy[2], null; } fifos = {
    {-1, -1}, {-1, -1}, -1, -1, {-1, -1}, -1,
};
static bool holds;

static uint64_t now(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000 * MS + (uint64_t)t.tv_nsec;
}

static _Noreturn void die(int code, const char *what)
{
    dprintf(2, "recorder: %s: %s\n", what, strerror(errno));
    _exit(code);
}

/* --------------------------------------------------------------------------------------------------------------- CRC */

static uint32_t crc_table[16][256];

static void make_crc_table(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int bit = 0; bit < 8; bit++)
            c = c & 1 ? 0xEDB88320u ^ c >> 1 : c >> 1;
        crc_table[0][i] = c;
    }
    for (int k = 1; k < 16; k++)
        for (int i = 0; i < 256; i++)
            crc_table[k][i] = crc_table[0][crc_table[k - 1][i] & 255] ^ crc_table[k - 1][i] >> 8;
}

/* CRC-32 of zlib, sixteen bytes at a time, continued from `crc`. */
static uint32_t crc32(uint32_t crc, const void *data, size_t n)
{
    const uint8_t *p = data;
    uint32_t(*t)[256] = crc_table, w[4];
    for (crc = ~crc; n >= sizeof w; n -= sizeof w, p += sizeof w) {
        memcpy(w, p, sizeof w);
        w[0] ^= crc;
        crc = 0;
        for (int i = 0; i < 4; i++)
            crc ^= t[15 - 4 * i][w[i] & 255] ^ t[14 - 4 * i][w[i] >> 8 & 255] ^ t[13 - 4 * i][w[i] >> 16 & 255] ^ t[12 - 4 * i][w[i] >> 24];
    }
    while (n--)
        crc = t[0][(crc ^ *p++) & 255] ^ crc >> 8;
    return ~crc;
}

/* ----------------------------------------------------------------------------------------------------------- signals */

/* Only the server can order a hard stop, as the server marks the record first. The sender of a signal proves nothing:
 * sigqueue lets a sender claim any PID, and with a full queue of signals the kernel reports PID 0. */
static bool is_hard_stop(int number)
{
    struct stat file;
    return number == HARD_STOP && fstat(record, &file) == 0 && !(file.st_mode & S_IWOTH);
}

/* Kills all other processes of the container. A salvage is not in it, and would kill those of a machine. */
static void kill_all(void)
{
    if (getpid() == 1)
        kill(-1, SIGKILL);
}

static void hard_stop(void)
{
    if (!hard_stopped)
        give_up = now(CLOCK_MONOTONIC) + (finishing ? FINISH_WAITS : STOP_WAITS);
    hard_stopped = true;
    /* After the trailer nothing runs but the keeper. */
    if (!keeper)
        kill_all();
}

static void reap(void)
{
    int its_status;
    for (pid_t process; (process = waitpid(-1, &its_status, WNOHANG)) > 0;)
        if (process == child) {
            status = its_status;
            ended = true;
            end_time = now(CLOCK_REALTIME);
        } else if (process == keeper)
            kept = true;
}

/* Waits for a readable descriptor, at most so long, and leaves the readable ones in `ready`. False: none.
 * Not by poll, which accepts at most RLIMIT_NOFILE descriptors: another process may lower that limit. */
static bool wait_for(const int *fds, int n, uint64_t timeout, fd_set *ready)
{
    int end = 0;
    FD_ZERO(ready);
    for (int i = 0; i < n; i++)
        if (fds[i] >= 0) {
            FD_SET(fds[i], ready);
            end = fds[i] >= end ? fds[i] + 1 : end;
        }
    struct timespec t = {.tv_sec = (time_t)(timeout / (1000 * MS)), .tv_nsec = (long)(timeout % (1000 * MS))};
    return pselect(end, ready, NULL, NULL, timeout == EVER ? NULL : &t, NULL) > 0;
}

/* Does what the server asks for by a signal. False: the signal is for the command. */
static bool obey(int number)
{
    if (!child) {
        /* The command does not run yet, and never will: the record is not claimed, or is empty, which proves it. */
        if ((number == HARD_STOP || number == SIGTERM || number == SIGINT) && (record < 0 || ftruncate(record, 0) == 0))
            _exit(CANNOT_BEGIN);
        return true;
    }
    if (is_hard_stop(number)) {
        hard_stop();
        return true;
    }
    return ended;
}

static void take_orders(void)
{
    for (uint8_t number; orders >= 0 && read(orders, &number, 1) == 1;)
        if (!obey(number)) {
            told = number;
            kill(child, number);
        }
}

/* Waits for signals and orders, at most so long, and serves the pending ones. */
static void serve_signals(uint64_t timeout)
{
    const int fds[] = {signals, orders};
    fd_set ready;
    if (timeout)
        wait_for(fds, 2, timeout, &ready);
    for (struct signalfd_siginfo s; read(signals, &s, sizeof s) == sizeof s;) {
        if (s.ssi_signo == SIGCHLD)
            reap();
        else if (s.ssi_signo == SIGALRM && s.ssi_code == SI_KERNEL && node_told) {
            if (child && !ended)
                hard_stop();
        } else if (!obey((int)s.ssi_signo) && s.ssi_pid != 1 && s.ssi_code != SI_KERNEL) { /* sent, not raised by our own limits: SIGXFSZ, SIGXCPU */
            told = s.ssi_pid ? told : (int)s.ssi_signo;
            /* From outside the container, and no order of the server: from the node. */
            if (s.ssi_signo == SIGTERM && !s.ssi_pid && node_grace && !node_told)
                node_told = true, alarm(node_grace);
            kill(child, (int)s.ssi_signo);
        }
    }
    take_orders();
}

/* Waits a moment for room. False: the wait was long enough. */
static bool wait_for_room(void)
{
    uint64_t since = now(CLOCK_MONOTONIC);
    serve_signals(WAIT_FOR_ROOM);
    blocked += now(CLOCK_MONOTONIC) - since;
    return since < give_up;
}

/* ----------------------------------------------------------------------------------------------------------- storing */

static bool write_all(const uint8_t *data, size_t n, uint64_t place)
{
    while (n) {
        ssize_t written = pwrite(record, data, n, (off_t)place);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return false;
        data += written, place += (uint64_t)written, n -= (size_t)written;
    }
    return true;
}

/* Free bytes in the last block of the record; 0: the next block has not been started. */
static size_t room(void) { return (size_t)(-size % BLOCK); }

/* Whether a frame with this payload is the first of a block. */
static bool begins_block(size_t payload) { return room() < sizeof out.frame + payload; }

/* The largest payload of the next frame, in bytes. */
static size_t payload_room(void) { return begins_block(1) ? sizeof out.payload : room() - sizeof out.frame; }

/* Frees the oldest blocks before block `number` is started. False: the limit is reached, and they cannot be freed. */
static bool make_way(uint64_t number)
{
    if (!tail || number < head)
        return true;
    for (int i = 0; number == head && i < SOURCES; i++)
        head_end[i] = oldest_begin[i] = stored[i].offset;
    for (; number >= oldest + tail; oldest++) {
        if (fallocate(record, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(oldest * BLOCK), BLOCK))
            return false;
        for (int i = 0; i < 2; i++)
            oldest_begin[i] += tail_bytes[oldest % tail][i];
    }
    return true;
}

static void begin_block(uint64_t number)
{
    out.block = (struct block_header){
        .magic = {0xAB, 'F', 'L', 'R'}, .version = 1, .size = sizeof out.block, .punched_from = (uint32_t)(tail ? head : 0),
        .number = number, .time = frame_time, .next_sequence = sequence + 1, .first_byte_time = first_byte_time,
    };
    memcpy(out.block.sources, stored, sizeof stored);
    out.block.check = crc32(0, &out.block.version, sizeof out.block - offsetof(struct block_header, version));
}

/* Whether the recorder may make larger files after raising its soft limit to the hard one. */
static bool raise_file_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_FSIZE, &limit) || limit.rlim_cur == limit.rlim_max)
        return false;
    limit.rlim_cur = limit.rlim_max;
    return setrlimit(RLIMIT_FSIZE, &limit) == 0;
}

/* Kills the command, as nothing can be stored any more. */
static void cut(void)
{
    cut_off = cut_off || !ended;
    kill_all();
}

/* Appends the frame with the payload in `out`; waits for room. False: there was no room for too long, or never will
 * be; the record is unchanged. */
static bool append(int kind, size_t length, uint64_t time, uint32_t payload_crc)
{
    out.frame = (struct frame_header){.time = time, .length = (uint16_t)length, .kind = (uint8_t)kind};
    out.frame.check = crc32(payload_crc, &out.frame, offsetof(struct frame_header, check));
    const uint8_t *data = (const uint8_t *)&out.frame;
    size_t n = sizeof out.frame + length;
    uint64_t place = size;
    if (begins_block(length)) {
        place += room(); /* the skipped bytes read as zeros */
        begin_block(place / BLOCK);
        data = (const uint8_t *)&out.block, n += sizeof out.block;
    }
    while (!write_all(data, n, place) || (kind == START && fdatasync(record))) {
        bool too_large = errno == EFBIG;
        /* A torn frame must never precede another one. */
        if (ftruncate(record, (off_t)size)) { /* The next frame overwrites it. */ }
        if (too_large && !raise_file_limit()) {
            cut();
            return false;
        }
        if (!wait_for_room())
            return false;
    }
    size = place + n;
    return true;
}

static uint64_t time_for_frame(void)
{
    uint64_t time = now(CLOCK_REALTIME);
    return time > frame_time ? time : frame_time;
}

static uint64_t newlines_in(const uint8_t *data, size_t n)
{
    uint64_t count = 0;
    for (size_t i = 0; i < n; i++)
        count += data[i] == '\n';
    return count;
}

/* Counts what was stored in the last block. */
static void count_tail_bytes(int source, size_t n, bool is_first)
{
    uint64_t number = (size - 1) / BLOCK;
    if (!tail || number < head)
        return;
    uint16_t *its = tail_bytes[number % tail];
    if (is_first)
        its[STDOUT] = its[STDERR] = 0;
    its[source] = (uint16_t)(its[source] + n);
}

/* The first `n` bytes of the payload came from a source. */
static void store(int source, size_t n)
{
    struct source *its = &seen[source];
    its->offset += n;
    its->newlines += newlines_in(out.payload, n);
    its->crc = crc32(its->crc, out.payload, n);
    if (!not_stored_by && begins_block(n) && !make_way((size + room()) / BLOCK))
        not_stored_by = BY_SIZE_LIMIT;
    if (not_stored_by)
        return;
    bool is_first = begins_block(n);
    uint64_t time = time_for_frame();
    if (!append(source + 1, n, time, its->crc)) {
        not_stored_by = BY_STORE;
        return;
    }
    count_tail_bytes(source, n, is_first);
    stored[source] = *its;
    sequence++;
    frame_time = time;
    if (!first_byte_time)
        first_byte_time = time;
}

static void store_gap(int source, uint64_t missing, int cause)
{
    memset(out.payload, 0, 16);
    out.payload[0] = (uint8_t)(source + 1), out.payload[1] = (uint8_t)cause;
    memcpy(out.payload + 8, &missing, sizeof missing);
    uint64_t time = time_for_frame();
    if (!append(GAP, 16, time, crc32(0, out.payload, 16)))
        return;
    struct source *its = &stored[source];
    sequence++;
    frame_time = time;
    its->flags = BYTES_ARE_MISSING;
    its->gap_sequence = missing == UNKNOWN ? sequence : 0;
    if (missing != UNKNOWN)
        its->offset += missing, its->missing += missing;
}

/* ------------------------------------------------------------------------------------------------------------- steps */

/* Waits until the start is granted. */
static void await_start(const char *box)
{
    char path[4096];
    if ((size_t)snprintf(path, sizeof path, "%s/wait", box) >= sizeof path)
        errno = ENAMETOOLONG, die(CANNOT_BEGIN, box);
    while (access(path, F_OK) == 0)
        serve_signals(START_LOOKS);
}

/* Reads the secrets, and removes them from the disk. Before the record is claimed: the server removes BOX then. */
static void take_secrets(const char *box)
{
    char path[4096];
    struct stat file;
    if (!secrets_expected)
        return;
    if ((size_t)snprintf(path, sizeof path, "%s/secrets", box) >= sizeof path)
        errno = ENAMETOOLONG, die(CANNOT_BEGIN, box);
    int source = open(path, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
    if (source < 0 || fstat(source, &file))
        die(errno == ENOENT ? CLAIMED_BEFORE : CANNOT_BEGIN, path);
    secrets_size = (size_t)file.st_size;
    if (secrets_size > MOST_SECRET_BYTES || !(secrets = calloc(1, secrets_size + 1)))
        errno = ENOMEM, die(CANNOT_BEGIN, path);
    if (pread(source, secrets, secrets_size, 0) != (ssize_t)secrets_size)
        die(CANNOT_BEGIN, path);
    /* Blocks of the disk that are free may keep their content. */
    static const char zeros[4096];
    for (size_t at = 0; at < secrets_size; at += sizeof zeros)
        if (pwrite(source, zeros, secrets_size - at < sizeof zeros ? secrets_size - at : sizeof zeros, (off_t)at) < 0)
            break;
    close(source);
    if (unlink(path))
        die(CANNOT_BEGIN, path);
    int variables = 0;
    for (size_t at = 0; at < secrets_size; at += strlen(secrets + at) + 1, variables++) {
        const char *value = strchr(secrets + at, '=');
        if (!value || !add_forms((const uint8_t *)value + 1, strlen(value + 1)))
            errno = value ? ENOMEM : EINVAL, die(CANNOT_BEGIN, path);
    }
    if (variables != secrets_expected || secrets[secrets_size - 1])
        errno = EINVAL, die(CANNOT_BEGIN, path);
    bool prepared = prepare_search();
    for (int i = 0; form_count && i < 2; i++)
        prepared = prepared && (streams[i].text = malloc(longest_form + BLOCK));
    if (!prepared)
        errno = ENOMEM, die(CANNOT_BEGIN, path);
}

/* Opens the FIFO of orders, if there is one. For writing, too: it has no end when its writer restarts. */
static void open_orders(const char *box)
{
    char path[4096];
    struct stat file;
    if ((size_t)snprintf(path, sizeof path, "%s/orders", box) >= sizeof path)
        errno = ENAMETOOLONG, die(CANNOT_BEGIN, box);
    if ((orders = open(path, O_RDWR | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC)) < 0) {
        if (errno != ENOENT)
            die(CANNOT_BEGIN, path);
        return;
    }
    if (orders >= FD_SETSIZE || fstat(orders, &file) || !S_ISFIFO(file.st_mode))
        errno = EINVAL, die(CANNOT_BEGIN, path);
}

/* Opens the file for the output of the keeper. */
static void open_outputs(const char *box)
{
    char path[4096];
    if (!keep_words)
        return;
    if ((size_t)snprintf(path, sizeof path, "%s/outputs", box) >= sizeof path)
        errno = ENAMETOOLONG, die(CANNOT_BEGIN, box);
    if ((keep_file = open(path, O_WRONLY | O_NOFOLLOW | O_CLOEXEC)) < 0)
        die(errno == ENOENT ? CLAIMED_BEFORE : CANNOT_BEGIN, path);
}

static int open_fifo(const char *box, const char *name, int how)
{
    char path[4096];
    struct stat file;
    if ((size_t)snprintf(path, sizeof path, "%s/%s", box, name) >= sizeof path)
        errno = ENAMETOOLONG, die(CANNOT_BEGIN, box);
    int fifo = open(path, how | O_NOFOLLOW | O_CLOEXEC);
    if (fifo < 0 && errno == ENOENT)
        return -1;
    if (fifo >= 0 && (fifo >= FD_SETSIZE || fstat(fifo, &file) || !S_ISFIFO(file.st_mode)))
        close(fifo), fifo = -1, errno = EINVAL;
    if (fifo < 0)
        die(CANNOT_BEGIN, path);
    return fifo;
}

static void hold_no_more(void);

/* Makes what is needed to take bytes from the FIFOs, and to keep them. */
static void begin_holding(void)
{
    holds = true;
    fcntl(fifos.taken, F_SETPIPE_SZ, TAKEN_PIPE); /* as large as this user is allowed */
    fifos.null = open("/dev/null", O_WRONLY | O_CLOEXEC);
    if (fifos.null < 0 || pipe2(fifos.copy, O_CLOEXEC | O_NONBLOCK)) {
        hold_no_more();
        return;
    }
    int most = fcntl(fifos.taken, F_GETPIPE_SZ);
    fcntl(fifos.copy[1], F_SETPIPE_SZ, most);
    /* There must be room for a stamp and for output, and for a copy of both. */
    if (most < 2 * 4096 || fcntl(fifos.copy[1], F_GETPIPE_SZ) < most)
        hold_no_more();
}

/* Opens the FIFOs, if they are there. */
static void open_held(const char *box)
{
    static const char *const names[] = {"stdout", "stderr"};
    if ((fifos.lost = open_fifo(box, "lost", O_RDWR | O_NONBLOCK)) < 0)
        return;
    fifos.taken = open_fifo(box, "taken", O_RDWR | O_NONBLOCK);
    for (int i = 0; i < 2; i++) {
        fifos.readers[i] = open_fifo(box, names[i], O_RDONLY | O_NONBLOCK);
        fifos.writers[i] = open_fifo(box, names[i], O_WRONLY);
        if (fifos.taken < 0 || fifos.readers[i] < 0 || fifos.writers[i] < 0)
            errno = ENOENT, die(CLAIMED_BEFORE, box);
    }
    begin_holding();
    /* What is masked is changed on the way, and held back: it is not kept. */
    if (secrets_expected)
        hold_no_more();
}

/* Claims the record, which only one recorder can. Returns the open directory BOX. */
static int claim(const char *box)
{
    char path[4096];
    int directory = open(box, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if ((size_t)snprintf(path, sizeof path, "%s/log", box) >= sizeof path)
        errno = ENAMETOOLONG, die(CANNOT_BEGIN, box);
    if ((record = open(path, O_RDWR | O_CLOEXEC)) < 0)
        die(errno == ENOENT ? CLAIMED_BEFORE : CANNOT_BEGIN, path);
    while (flock(record, LOCK_EX)) /* the server holds the lock for a moment now and then */
        if (errno != EINTR)
            die(CANNOT_BEGIN, path);
    struct stat file;
    if (fstat(record, &file))
        die(CANNOT_BEGIN, path);
    if (file.st_size)
        errno = EEXIST, die(CLAIMED_BEFORE, path);
    if (file.st_nlink < 2) /* revoked while this recorder waited for the lock */
        errno = ENOENT, die(CLAIMED_BEFORE, path);
    if (unlink(path))
        die(errno == ENOENT ? CLAIMED_BEFORE : CANNOT_BEGIN, path);
    return directory;
}

/* Writes the first frame to the disk. From here on the command may run. */
static void begin(const char *execution)
{
    int n = snprintf((char *)out.payload, sizeof out.payload, "{\"execution_id\":\"%s\",\"capture\":\"recorder\"}", execution);
    if (!append(START, (size_t)n, now(CLOCK_REALTIME), crc32(0, out.payload, (size_t)n)))
        errno = EFBIG, die(CANNOT_BEGIN, "the record");
}

/* Waits until the server has removed BOX, which then has no links, and in which no file can be created. */
static void hand_off(int box)
{
    static const char *const names[] = {"stdout", "stderr", "taken", "lost"};
    struct stat directory;
    /* Also if nobody removes BOX in time. */
    for (int i = 0; fifos.lost >= 0 && i < 4; i++)
        unlinkat(box, names[i], 0);
    for (uint64_t until = now(CLOCK_MONOTONIC) + HAND_OFF_WAITS; now(CLOCK_MONOTONIC) < until; serve_signals(GATHER))
        if (fstat(box, &directory) || !directory.st_nlink)
            break;
    close(box);
}

/* Looks up the command as an engine does: without a shell; a later file that may be executed is preferred. */
static void execute(char **command)
{
    if (strchr(command[0], '/')) {
        execv(command[0], command);
        return;
    }
    const char *path = getenv("PATH"), *end;
    if (!path)
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    int why = ENOENT;
    for (bool more = *command[0] && *path; more; path = end + 1) {
        char place[8192];
        struct stat file;
        end = strchrnul(path, ':');
        more = *end;
        int n = snprintf(place, sizeof place, "%.*s/%s", end == path ? 1 : (int)(end - path), end == path ? "." : path, command[0]);
        /* Not faccessat: with flags, its system call is forbidden by older engines. */
        if ((size_t)n >= sizeof place || stat(place, &file) || S_ISDIR(file.st_mode))
            continue;
        if (access(place, X_OK) == 0) {
            execv(place, command);
            return;
        }
        why = errno;
    }
    errno = why;
}

/* The standard input of the command, opened before the record is claimed; -1: that of the recorder. */
static int stdin_file = -1;

static void open_stdin(const char *path)
{
    if (path && (stdin_file = open(path, O_RDONLY | O_CLOEXEC)) < 0)
        die(CANNOT_BEGIN, path);
}

static void make_pipe(int ends[2])
{
    if (ends[0] >= 0)
        return;
    if (pipe2(ends, O_CLOEXEC))
        exec_error = errno;
    else if (ends[0] >= FD_SETSIZE)
        exec_error = EMFILE;
}

#if defined __x86_64__
enum { NATIVE = AUDIT_ARCH_X86_64, PRLIMIT_OF_32_BITS = 340, NO_X32 = 0x3fffffff };
#elif defined __aarch64__
enum { NATIVE = AUDIT_ARCH_AARCH64, PRLIMIT_OF_32_BITS = 369, NO_X32 = -1 };
#endif

/* Keeps the calling process, and every process that it starts, from lowering the limits of PID 1. The kernel alone
 * would check only for the same user and group, and the container's user has both. */
static void give_up_prlimit(void)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)NATIVE, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_STMT(BPF_ALU | BPF_AND | BPF_K, (uint32_t)NO_X32),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_prlimit64, 2, 4),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, PRLIMIT_OF_32_BITS, 0, 2),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 1, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
    };
    struct sock_fprog program = {.len = sizeof filter / sizeof *filter, .filter = filter};
    /* The flag avoids a slowdown. It is refused if an engine's own filter forbids it, or without an engine. */
    syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, &program);
}

static struct { int resource; struct rlimit limit; } ulimits[16];
static int ulimit_count;
static bool drops_kill, drops_setpcap;

/* Sets the limits of the command, and takes capabilities from it. False: they cannot be set. */
static bool give_up_rights(void)
{
    for (int i = 0; i < ulimit_count; i++)
        if (setrlimit(ulimits[i].resource, &ulimits[i].limit)) {
            dprintf(2, "recorder: the limits of the command could not be set: %s\n", strerror(errno));
            return false;
        }
    if (!drops_kill && !drops_setpcap)
        return true;
    /* A process that is not root has none, and gets none: no-new-privileges is set. SETPCAP is needed until the end. */
    if (drops_kill)
        prctl(PR_CAPBSET_DROP, CAP_KILL);
    if (drops_setpcap)
        prctl(PR_CAPBSET_DROP, CAP_SETPCAP);
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2];
    uint32_t dropped = (drops_kill ? 1u << CAP_KILL : 0) | (drops_setpcap ? 1u << CAP_SETPCAP : 0);
    if (syscall(SYS_capget, &header, data))
        return false;
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    data[0].effective &= ~dropped, data[0].permitted &= ~dropped, data[0].inheritable &= ~dropped;
    return syscall(SYS_capset, &header, data) == 0;
}

/* Starts the command in a session of its own. A failure is in `exec_error`, or comes by the pipe `exec_failure`. */
static void launch(char **command)
{
    int failure[2] = {-1, -1}, output[2][2];
    for (int i = 0; i < 2; i++)
        output[i][0] = fifos.readers[i], output[i][1] = fifos.writers[i];
    make_pipe(output[STDOUT]), make_pipe(output[STDERR]), make_pipe(failure);
    start_time = now(CLOCK_REALTIME);
    if (!exec_error && (child = fork()) < 0)
        exec_error = errno;
    if (exec_error) {
        ended = true;
        end_time = start_time;
        return;
    }
    if (child == 0) {
        setsid();
        sigset_t none;
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        for (size_t at = 0; at < secrets_size; at += strlen(secrets + at) + 1)
            putenv(secrets + at);
        give_up_prlimit();
        if ((stdin_file < 0 || dup2(stdin_file, 0) == 0) && dup2(output[STDOUT][1], 1) == 1 && dup2(output[STDERR][1], 2) == 2 && give_up_rights())
            execute(command);
        int why = errno;
        _exit(write(failure[1], &why, sizeof why) == sizeof why ? NOT_FOUND : CANNOT_BEGIN);
    }
    if (secrets)
        explicit_bzero(secrets, secrets_size);
    if (stdin_file >= 0)
        close(stdin_file);
    for (int i = 0; i < 2; i++) {
        pipes[i] = output[i][0];
        close(output[i][1]);
        fcntl(pipes[i], F_SETFL, O_NONBLOCK);
        fcntl(pipes[i], F_SETPIPE_SZ, PIPE); /* as large as this user is allowed */
    }
    exec_failure = failure[0];
    close(failure[1]);
}

/* Bytes of the payload that come from the masking and are not stored yet. */
static size_t filled;

static void store_filled(int source)
{
    if (filled)
        store(source, filled);
    filled = 0;
}

/* Adds bytes to the payload, and stores it when it is full. */
static void fill(int source, const uint8_t *bytes, size_t n)
{
    while (n) {
        size_t most = payload_room() - filled, some = n < most ? n : most;
        memcpy(out.payload + filled, bytes, some);
        filled += some, bytes += some, n -= some;
        if (some == most)
            store_filled(source);
    }
}

static bool holds_back(const struct stream *stream) { return stream->given < stream->length; }

/* Stores what is held back of the output of a source. */
static void let_go_of(int source)
{
    if (!holds_back(&streams[source]))
        return;
    let_go(&streams[source], source, fill);
    store_filled(source);
}

/* Stores what came from a pipe, masked, but for what may become a form. */
static void store_masked(int source, size_t n)
{
    struct stream *stream = &streams[source];
    size_t held = stream->length - stream->given;
    stream->length += n;
    mask(stream, source, fill);
    store_filled(source);
    /* The time is that of the first byte held back. */
    if (!held || stream->length - stream->given <= n)
        held_since[source] = now(CLOCK_MONOTONIC);
}

/* ---------------------------------------------------------------------------------------------------------- holding */

/* What precedes the bytes in `taken`: their source and their offset in it. */
static struct { char magic[16]; uint64_t source, offset; } stamp;
static const char STAMP[] = "fastlane taken\1";

_Static_assert(sizeof STAMP == sizeof stamp.magic, "the magic of a stamp");

/* Tells who salvages that bytes may be missing: from now on what was taken and not stored goes with the recorder. */
static void hold_no_more(void)
{
    if (holds && write(fifos.lost, "", 1) != 1) { /* It was written before: the FIFO is full of it. */ }
    holds = false;
}

/* Empties `taken`, from its front: a recorder that is killed here leaves bytes without a stamp. */
static void forget_taken(void)
{
    for (int n; ioctl(fifos.taken, FIONREAD, &n) == 0 && n > 0;)
        if (splice(fifos.taken, NULL, fifos.null, NULL, (size_t)n, SPLICE_F_NONBLOCK) <= 0) {
            hold_no_more();
            return;
        }
}

/* Reads the stamp, and `n` bytes after it, which stay in `taken`. False: they cannot be read. */
static bool look_at_taken(uint8_t *bytes, size_t n)
{
    struct iovec parts[] = {{&stamp, sizeof stamp}, {bytes, n}};
    size_t left = sizeof stamp + n;
    if (tee(fifos.taken, fifos.copy[1], left, SPLICE_F_NONBLOCK) != (ssize_t)left)
        return false;
    while (left) {
        ssize_t some = readv(fifos.copy[0], parts, 2);
        if (some <= 0)
            return false;
        left -= (size_t)some;
        for (int i = 0; i < 2; i++) {
            size_t its = (size_t)some < parts[i].iov_len ? (size_t)some : parts[i].iov_len;
            parts[i].iov_base = (uint8_t *)parts[i].iov_base + its, parts[i].iov_len -= its, some -= (ssize_t)its;
        }
    }
    return true;
}

/* Takes bytes from a pipe, as `read` does. If they are kept, they are in `taken`, too, until they are stored. The
 * kernel moves them from one FIFO to the other as a whole, whenever the recorder is killed. */
static ssize_t take_held(int source, uint8_t *bytes, size_t most)
{
    if (!holds)
        return read(pipes[source], bytes, most);
    memcpy(stamp.magic, STAMP, sizeof STAMP);
    stamp.source = (uint64_t)source, stamp.offset = seen[source].offset;
    if (write(fifos.taken, &stamp, sizeof stamp) != sizeof stamp) {
        hold_no_more();
        return read(pipes[source], bytes, most);
    }
    ssize_t n = splice(pipes[source], NULL, fifos.taken, NULL, most, SPLICE_F_NONBLOCK);
    if (n > 0 && look_at_taken(bytes, (size_t)n))
        return n;
    int why = errno;
    if (n > 0) {
        /* They cannot be copied. */
        hold_no_more();
        if (read(fifos.taken, &stamp, sizeof stamp) != sizeof stamp)
            return 0;
        return read(fifos.taken, bytes, (size_t)n);
    }
    forget_taken();
    errno = why;
    if (n == 0 || why == EAGAIN || why == EINTR)
        return n;
    hold_no_more();
    return read(pipes[source], bytes, most);
}

/* What `take_held` took is stored, or never will be. */
static void release_held(void)
{
    if (not_stored_by)
        hold_no_more();
    forget_taken();
}

/* Stores the bytes in a pipe, up to the end of the block if they are not masked. */
static void take(int source)
{
    static uint64_t last;
    static int run;
    struct stream *stream = &streams[source];
    ssize_t n = stream->text ? read(pipes[source], stream->text + stream->length, BLOCK)
                             : take_held(source, out.payload, payload_room());
    if (n > 0) {
        uint64_t time = now(CLOCK_MONOTONIC);
        run = time - last < (run > FLOOD ? 2 * MS : MS) ? run + 1 : 0;
        last = time;
        taken_bytes += (uint64_t)n;
        if (stream->text)
            store_masked(source, (size_t)n);
        else {
            store(source, (size_t)n);
            if (holds)
                release_held();
        }
        /* A frame costs a reader as much as some thousand bytes. The pipe holds new bytes meanwhile. */
        if (run > FLOOD && n < LARGE_PIECE)
            serve_signals(GATHER);
    } else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
        let_go_of(source);
        close(pipes[source]);
        pipes[source] = -1;
    }
}

/* Returns the time until output has been held back for long enough; EVER: none is. */
static uint64_t until_let_go(int source)
{
    if (!holds_back(&streams[source]))
        return EVER;
    uint64_t held = now(CLOCK_MONOTONIC) - held_since[source];
    return held < HOLD_BACK ? HOLD_BACK - held : 0;
}

/* Serves the first input or signal. False: none came within the time. */
static bool serve(uint64_t timeout)
{
    const int fds[] = {signals, orders, pipes[STDOUT], pipes[STDERR]};
    fd_set ready;
    uint64_t hold = EVER;
    for (int i = 0; form_count && i < 2; i++) {
        uint64_t left = until_let_go(i);
        if (!left)
            let_go_of(i);
        else if (left < hold)
            hold = left;
    }
    if (!wait_for(fds, 4, hold < timeout ? hold : timeout, &ready))
        return hold < timeout; /* the next call lets go */
    if (FD_ISSET(signals, &ready) || (orders >= 0 && FD_ISSET(orders, &ready)))
        serve_signals(0);
    for (int i = 0; i < 2; i++)
        if (fds[2 + i] >= 0 && FD_ISSET(fds[2 + i], &ready))
            take(i);
    return true;
}

/* Stores the rest of the pipes, after the command ended and all other processes with it, as for any PID 1. */
static void drain(void)
{
    kill_all();
    uint64_t silent_since = now(CLOCK_MONOTONIC);
    while (pipes[STDOUT] >= 0 || pipes[STDERR] >= 0) {
        uint64_t before = taken_bytes;
        if (!serve(1000 * MS))
            kill_all();
        if (taken_bytes != before)
            silent_since = now(CLOCK_MONOTONIC);
        else if (now(CLOCK_MONOTONIC) - silent_since > SILENCE)
            return; /* a process that cannot even be killed has the pipe open */
    }
    serve_signals(0);
}

static int exit_code(void)
{
    if (exec_error)
        return exec_error == ENOENT || exec_error == ENOTDIR ? NOT_FOUND : NOT_EXECUTABLE;
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

static char *text_end(void) { return (char *)out.payload + strnlen((char *)out.payload, sizeof out.payload); }

#define SAY(...) snprintf(text_end(), 512, __VA_ARGS__)

static void say_totals(void)
{
    const char *comma = "";
    for (int i = 0; i < 2; i++) {
        uint64_t missing = seen[i].offset - (stored[i].offset - stored[i].missing) + (oldest_begin[i] - head_end[i]);
        bool lost_unseen = stored[i].gap_sequence != 0;
        if (!seen[i].offset && !lost_unseen)
            continue;
        SAY("%s{\"source\":%d,\"bytes\":%llu,\"missing_bytes\":%llu,\"newlines\":%llu,\"crc32\":", comma, i + 1,
            (unsigned long long)seen[i].offset, (unsigned long long)missing, (unsigned long long)seen[i].newlines);
        if (lost_unseen)
            SAY("null}");
        else
            SAY("%u}", seen[i].crc);
        comma = ",";
    }
}

/* Reads a file of the container's own cgroup. False: there is none, or the file is not the kernel's. */
static bool read_cgroup(const char *name, char text[4096])
{
    int file = open(name, O_RDONLY | O_CLOEXEC);
    struct statfs kind;
    ssize_t n = -1;
    if (file < 0)
        return false;
    if (fstatfs(file, &kind) == 0 && (kind.f_type == CGROUP_SUPER_MAGIC || kind.f_type == CGROUP2_SUPER_MAGIC))
        n = read(file, text, 4095);
    close(file);
    text[n > 0 ? n : 0] = 0;
    return n >= 0;
}

/* The sum of the numbers that follow `key` in a file of the cgroup; with an empty key the number that the file is. -1:
 * the kernel does not tell. */
static long long sum_of(const char *name, const char *key)
{
    char text[4096];
    if (!read_cgroup(name, text))
        return -1;
    if (!*key)
        return *text ? strtoll(text, NULL, 10) : -1;
    long long sum = 0;
    for (const char *at = text; (at = strstr(at, key));)
        sum += strtoll(at += strlen(key), NULL, 10);
    return sum;
}

/* Whether the container's cgroup of version 2 is there. An engine may show the host's, which has no events. */
static bool has_cgroup2(void)
{
    char text[4096];
    return read_cgroup("/sys/fs/cgroup/cgroup.events", text);
}

/* The kernel's count of processes of this container that it killed for memory. -1: the kernel does not tell. */
static long long kills_for_memory(void)
{
    /* The engine mounts the container's own cgroup, of version 2 or 1, and hears of a kill only sometimes. */
    long long kills = sum_of("/sys/fs/cgroup/memory.events", "\noom_kill ");
    return kills >= 0 ? kills : sum_of("/sys/fs/cgroup/memory/memory.oom_control", "\noom_kill ");
}

/* What the kernel counted of the container up to now, the recorder included. -1: the kernel does not tell. */
static void say_usage(void)
{
    bool second = has_cgroup2();
    long long cpu = second ? sum_of("/sys/fs/cgroup/cpu.stat", "usage_usec ") : sum_of("/sys/fs/cgroup/cpuacct/cpuacct.usage", "");
    const char *io = second ? "/sys/fs/cgroup/io.stat" : "/sys/fs/cgroup/blkio/blkio.throttle.io_service_bytes";
    long long got = sum_of(io, second ? "rbytes=" : " Read "), put = sum_of(io, second ? "wbytes=" : " Write ");
    /* Version 1 may count nothing, whatever a container does: then it does not tell. */
    got = second || got ? got : -1, put = second || put ? put : -1;
    SAY("\"usage\":{\"cpu_us\":%lld,\"peak_memory_bytes\":%lld,\"read_bytes\":%lld,\"written_bytes\":%lld},",
        second || cpu < 0 ? cpu : cpu / 1000,
        sum_of(second ? "/sys/fs/cgroup/memory.peak" : "/sys/fs/cgroup/memory/memory.max_usage_in_bytes", ""), got, put);
}

/* Stores the gaps at the end of the output. */
static void store_gaps(void)
{
    for (int i = 0; i < 2; i++) {
        let_go_of(i);
        if (seen[i].offset > stored[i].offset)
            store_gap(i, seen[i].offset - stored[i].offset, not_stored_by);
        if (pipes[i] >= 0)
            store_gap(i, UNKNOWN, BY_ENGINE);
    }
}

/* Stores the known gaps and the trailer. False: they could not be stored. */
static bool finish(void)
{
    finishing = true;
    if (hard_stopped)
        give_up = now(CLOCK_MONOTONIC) + FINISH_WAITS;
    store_gaps();
    struct rusage usage;
    getrusage(RUSAGE_CHILDREN, &usage);
    out.payload[0] = 0;
    if (exec_error)
        SAY("{\"exit_code\":null,\"totals\":[");
    else
        SAY("{\"exit_code\":%d,\"totals\":[", exit_code());
    say_totals();
    SAY("],\"facts\":{\"recorder\":1,\"signal\":%d,\"exec_error\":%d,\"start_time_ns\":%llu,\"end_time_ns\":%llu,\"hard_stop\":%s,\"cut_off\":%s,\"told\":%d,",
        !exec_error && WIFSIGNALED(status) ? WTERMSIG(status) : 0, exec_error, (unsigned long long)start_time,
        (unsigned long long)end_time, hard_stopped ? "true" : "false", cut_off ? "true" : "false", told);
    SAY("\"kills_for_memory\":%lld,", kills_for_memory());
    say_usage();
    SAY("\"blocked_ms\":%llu,\"user_us\":%llu,\"system_us\":%llu,\"max_rss_kib\":%ld}}", (unsigned long long)(blocked / MS),
        (unsigned long long)usage.ru_utime.tv_sec * 1000000 + (unsigned long long)usage.ru_utime.tv_usec,
        (unsigned long long)usage.ru_stime.tv_sec * 1000000 + (unsigned long long)usage.ru_stime.tv_usec, usage.ru_maxrss);
    size_t n = (size_t)(text_end() - (char *)out.payload);
    bool whole = append(TRAILER, n, time_for_frame(), crc32(0, out.payload, n));
    fdatasync(record);
    return whole;
}

/* Runs the keeper to its end, at most for as long as a relay may take. What it could not write has no end then. */
static void keep_outputs(void)
{
    /* The words and variables of the job are not for it. */
    char *const no_variables[] = {NULL};
    uint64_t until = relay_wait ? now(CLOCK_MONOTONIC) + relay_wait : EVER;
    if (!keep_words || (keeper = fork()) < 0)
        return;
    if (!keeper) {
        sigset_t none;
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        if (dup2(keep_file, 1) == 1)
            execve(keep[0], keep, no_variables);
        dprintf(2, "recorder: %s: %s\n", keep[0], strerror(errno));
        _exit(CANNOT_BEGIN);
    }
    while (!kept && now(CLOCK_MONOTONIC) < until)
        serve_signals(1000 * MS);
    if (!kept)
        kill(-1, SIGKILL);
}

/* Waits until a relay has marked the record as copied. */
static void await_relay(void)
{
    uint64_t until = now(CLOCK_MONOTONIC) + relay_wait, pause = 5 * MS;
    struct stat file;
    if (!relay_wait || flock(record, LOCK_UN))
        return;
    while (now(CLOCK_MONOTONIC) < until && fstat(record, &file) == 0 && !(file.st_mode & S_IXOTH)) {
        serve_signals(pause);
        pause = pause < 500 * MS ? 2 * pause : pause;
    }
}

/* -------------------------------------------------------------------------------------------------------- salvaging */

/* Reads a block, and its state before the first frame. Returns the bytes that are there; 0: its header is not whole. */
static size_t read_block(uint64_t number, uint8_t block[BLOCK])
{
    struct block_header header;
    const size_t checked = offsetof(struct block_header, version);
    size_t n = 0;
    for (ssize_t some; n < BLOCK && (some = pread(record, block + n, BLOCK - n, (off_t)(number * BLOCK + n))) > 0;)
        n += (size_t)some;
    if (n < sizeof header)
        return 0;
    memcpy(&header, block, sizeof header);
    static const uint8_t magic[4] = {0xAB, 'F', 'L', 'R'};
    if (memcmp(header.magic, magic, sizeof magic) || header.number != number ||
        header.check != crc32(0, block + checked, sizeof header - checked))
        return 0;
    memcpy(stored, header.sources, sizeof stored);
    sequence = header.next_sequence - 1, frame_time = header.time, first_byte_time = header.first_byte_time;
    return n;
}

/* Adds a whole frame to the state. False: it is damaged. */
static bool follow_frame(const struct frame_header *frame, const uint8_t *payload)
{
    bool is_data = frame->kind <= SOURCES;
    struct source *its = is_data ? &stored[frame->kind - 1] : NULL;
    uint32_t crc = crc32(is_data ? its->crc : 0, payload, frame->length);
    if (frame->check != crc32(crc, frame, offsetof(struct frame_header, check)))
        return false;
    if (is_data) {
        its->offset += frame->length, its->newlines += newlines_in(payload, frame->length);
        its->crc = crc, its->gap_sequence = 0;
        first_byte_time = first_byte_time ? first_byte_time : frame->time;
    } else if (frame->kind == GAP) {
        uint64_t missing;
        if (frame->length != 16 || payload[0] < 1 || payload[0] > SOURCES)
            return false;
        memcpy(&missing, payload + 8, sizeof missing);
        its = &stored[payload[0] - 1];
        its->flags = BYTES_ARE_MISSING, its->gap_sequence = missing == UNKNOWN ? sequence + 1 : 0;
        if (missing != UNKNOWN)
            its->offset += missing, its->missing += missing;
    } else
        return frame->kind == START || frame->kind == TRAILER;
    sequence++;
    frame_time = frame->time;
    return true;
}

static _Noreturn void give_up_salvage(const char *why)
{
    dprintf(2, "recorder: the record cannot be completed: %s\n", why);
    _exit(CANNOT_BEGIN);
}

/* Goes on after the last whole frame of the record. False: it has its trailer. */
static bool resume(void)
{
    static uint8_t block[BLOCK];
    struct stat file;
    if (fstat(record, &file) || !file.st_size)
        give_up_salvage("it was not begun");
    uint64_t number = (uint64_t)(file.st_size - 1) / BLOCK;
    size_t n = read_block(number, block), at = sizeof(struct block_header);
    /* A header is written with the first frame of its block. */
    if (!n && number)
        n = read_block(--number, block);
    if (!n)
        give_up_salvage("its last block is damaged");
    for (struct frame_header frame; at + sizeof frame <= n; at += sizeof frame + frame.length) {
        memcpy(&frame, block + at, sizeof frame);
        if (!frame.kind || at + sizeof frame + frame.length > n)
            break;
        if (!follow_frame(&frame, block + at + sizeof frame))
            give_up_salvage("a frame is damaged");
        if (frame.kind == TRAILER)
            return false;
    }
    size = number * BLOCK + at;
    if (ftruncate(record, (off_t)size))
        give_up_salvage(strerror(errno));
    memcpy(seen, stored, sizeof seen);
    off_t data = tail ? lseek(record, (off_t)(head * BLOCK), SEEK_DATA) : -1;
    if (data > 0)
        oldest = (uint64_t)data / BLOCK;
    return true;
}

/* Stores a gap of unknown size, unless the record ends with one for this source. */
static void say_that_bytes_may_be_missing(int source)
{
    if (!stored[source].gap_sequence)
        store_gap(source, UNKNOWN, BY_ENGINE);
    seen[source] = stored[source];
    /* As it is after the next byte. */
    seen[source].gap_sequence = 0;
}

/* Stores what a recorder had taken, if it is not in the record yet. */
static void store_taken(void)
{
    int n = 0;
    bool fits = true;
    if (ioctl(fifos.taken, FIONREAD, &n) == 0 && n > (int)sizeof stamp) {
        size_t bytes = (size_t)n - sizeof stamp;
        /* At most as many as there was room for. */
        fits = bytes <= sizeof out.payload && look_at_taken(out.payload, bytes);
        /* Without a stamp they are stored: the recorder was about to forget them. */
        if (fits && memcmp(stamp.magic, STAMP, sizeof STAMP) == 0) {
            int source = stamp.source == STDERR ? STDERR : STDOUT;
            if (stamp.offset == seen[source].offset && bytes <= payload_room())
                store(source, bytes);
            else
                fits = stamp.offset + bytes == seen[source].offset;
        }
    }
    for (int i = 0; !fits && i < 2; i++)
        say_that_bytes_may_be_missing(i);
    release_held();
}

/* Stores all that a recorder that is gone left in the FIFOs. Returns once every process of its container is gone. */
static int salvage(void)
{
    fd_set ready;
    int lost = 0;
    record = 3, fifos.taken = 6, fifos.lost = 7;
    for (int i = 0; i < 2; i++) {
        pipes[i] = 4 + i;
        fcntl(pipes[i], F_SETFL, O_NONBLOCK);
    }
    fcntl(fifos.taken, F_SETFL, O_NONBLOCK), fcntl(fifos.lost, F_SETFL, O_NONBLOCK);
    make_crc_table();
    while (flock(record, LOCK_EX))
        if (errno != EINTR)
            give_up_salvage(strerror(errno));
    if (!resume())
        return 0;
    ioctl(fifos.lost, FIONREAD, &lost);
    begin_holding();
    for (int i = 0; lost && i < 2; i++)
        say_that_bytes_may_be_missing(i);
    store_taken();
    do
        for (int i = 0; i < 2; i++)
            if (pipes[i] >= 0)
                take(i);
    while ((pipes[STDOUT] >= 0 || pipes[STDERR] >= 0) && wait_for(pipes, 2, SILENCE, &ready));
    store_gaps();
    return fdatasync(record) || not_stored_by == BY_STORE ? CANNOT_STORE : 0;
}

/* -------------------------------------------------------------------------------------------------------------- main */

static _Noreturn void usage(const char *what, const char *why)
{
    dprintf(2, "recorder: %s: %s\nusage: recorder --execution ID [--limit BYTES] [--ulimit NAME=SOFT:HARD]... [--cap-drop NAME]... [--secrets NUMBER] [--stdin FILE] [--await-relay SECONDS] [--node-grace SECONDS] [--keep WORD]... BOX -- COMMAND [ARGUMENT...]\n", what, why);
    _exit(CANNOT_BEGIN);
}

/* Reads NAME=SOFT:HARD; -1 is unlimited. */
static void read_ulimit(const char *word)
{
    static const struct { const char *name; int resource; } known[] = {
        {"core", RLIMIT_CORE}, {"cpu", RLIMIT_CPU}, {"data", RLIMIT_DATA}, {"fsize", RLIMIT_FSIZE}, {"memlock", RLIMIT_MEMLOCK},
        {"nofile", RLIMIT_NOFILE}, {"nproc", RLIMIT_NPROC}, {"sigpending", RLIMIT_SIGPENDING}, {"stack", RLIMIT_STACK},
    };
    char name[16];
    long long soft, hard;
    int end = 0;
    if (ulimit_count == (int)(sizeof ulimits / sizeof *ulimits) || sscanf(word, "%15[a-z]=%lld:%lld%n", name, &soft, &hard, &end) != 3 || word[end])
        usage("--ulimit", "expected NAME=SOFT:HARD");
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(name, known[i].name) == 0) {
            ulimits[ulimit_count].resource = known[i].resource;
            ulimits[ulimit_count++].limit = (struct rlimit){soft < 0 ? RLIM_INFINITY : (rlim_t)soft, hard < 0 ? RLIM_INFINITY : (rlim_t)hard};
            return;
        }
    usage("--ulimit", "no such limit");
}

static void set_limit(const char *bytes)
{
    char *end;
    uint64_t blocks = bytes ? strtoull(bytes, &end, 10) / BLOCK : 0;
    if (!bytes)
        return;
    if (*end || blocks < 4 || blocks > UINT32_MAX)
        usage("--limit", "expected a number of bytes, 262144 or more");
    head = oldest = blocks / 2, tail = blocks - head;
    /* Takes memory only where it is used: some 32 KiB for a gigabyte of output. */
    tail_bytes = mmap(NULL, tail * sizeof *tail_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (tail_bytes == MAP_FAILED)
        die(CANNOT_BEGIN, "--limit");
}

/* Reads the options; returns BOX, "--" and the command. */
static char **read_options(char **word, const char **execution, const char **stdin_path)
{
    for (; *word && strncmp(*word, "--", 2) == 0 && word[1]; word += 2) {
        if (strcmp(*word, "--execution") == 0)
            *execution = word[1];
        else if (strcmp(*word, "--limit") == 0)
            set_limit(word[1]);
        else if (strcmp(*word, "--secrets") == 0) {
            secrets_expected = atoi(word[1]);
            if (secrets_expected < 1)
                usage("--secrets", "expected a number of variables");
        } else if (strcmp(*word, "--await-relay") == 0) {
            int seconds = atoi(word[1]);
            if (seconds < 1)
                usage("--await-relay", "expected a number of seconds");
            relay_wait = (uint64_t)seconds * 1000 * MS;
        } else if (strcmp(*word, "--node-grace") == 0) {
            int seconds = atoi(word[1]);
            if (seconds < 1)
                usage("--node-grace", "expected a number of seconds");
            node_grace = (unsigned)seconds;
        } else if (strcmp(*word, "--keep") == 0) {
            if (keep_words + 1 == (int)(sizeof keep / sizeof *keep))
                usage("--keep", "too many words");
            keep[keep_words++] = word[1];
        } else if (strcmp(*word, "--stdin") == 0)
            *stdin_path = word[1];
        else if (strcmp(*word, "--ulimit") == 0)
            read_ulimit(word[1]);
        else if (strcmp(*word, "--cap-drop") == 0) {
            if (strcmp(word[1], "KILL") && strcmp(word[1], "SETPCAP"))
                usage("--cap-drop", "expected KILL or SETPCAP");
            drops_kill |= strcmp(word[1], "KILL") == 0, drops_setpcap |= strcmp(word[1], "SETPCAP") == 0;
        } else
            usage(*word, "no such option");
    }
    /* The id goes into the first frame unchanged. */
    const char *plain = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-.";
    if (!*execution || !**execution || strlen(*execution) > 200 || strspn(*execution, plain) != strlen(*execution))
        usage("--execution", "expected an id");
    if (!word[0] || !word[1] || strcmp(word[1], "--") || !word[2])
        usage("arguments", "expected a box, -- and a command");
    return word;
}

int main(int argc, char **argv)
{
    bool is_probe = argc == 2 && strcmp(argv[1], "--probe") == 0;
    if (is_probe || (argc == 2 && strcmp(argv[1], "--version") == 0)) {
        for (int lines = is_probe ? 20000 : 1; lines; lines--)
            if (printf("fastlane recorder 1, record format 1\n") < 0)
                return 1;
        return 0;
    }
    if (argc == 3 && strcmp(argv[1], "--salvage") == 0) {
        set_limit(strcmp(argv[2], "0") ? argv[2] : NULL);
        return salvage();
    }
    const char *execution = NULL, *stdin_path = NULL;
    char **words = read_options(argv + !!argc, &execution, &stdin_path);
    if (getpid() != 1)
        usage("not PID 1", "it would end every process it sees");
    /* If it may, as root may, the recorder sets a saved group that differs from its group. prlimit demands a group that
     * equals all of them, which no process has. Executing the command resets the command's saved group. */
    if (setresgid((gid_t)-1, (gid_t)-1, getgid() ? 0 : 1)) { /* The filter is enough. */ }
    prctl(PR_SET_DUMPABLE, 0); /* no process in the container reaches the record through /proc/1 */
    /* Keeps messages and output out of files that were opened as number 0, 1 or 2. */
    for (int fd = 0; fd >= 0 && fd < 3;)
        fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    /* For the command too. With an ignored SIGCHLD its end would never be reported. By system call, as C libraries
     * reserve some numbers. */
    static const uint64_t by_default[4];
    for (int number = 1; number <= 64; number++)
        syscall(SYS_rt_sigaction, number, by_default, NULL, 8);
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, NULL);
    if ((signals = signalfd(-1, &all, SFD_NONBLOCK | SFD_CLOEXEC)) < 0)
        die(CANNOT_BEGIN, "signalfd");
    if (signals >= FD_SETSIZE)
        errno = EMFILE, die(CANNOT_BEGIN, "signalfd");
    make_crc_table();

    await_start(words[0]);
    open_stdin(stdin_path);
    take_secrets(words[0]);
    open_orders(words[0]);
    open_outputs(words[0]);
    open_held(words[0]);
    int box = claim(words[0]);
    begin(execution);
    hand_off(box);
    launch(words + 2);
    while (!ended)
        serve(EVER);
    if (exec_failure >= 0 && read(exec_failure, &exec_error, sizeof exec_error) != sizeof exec_error)
        exec_error = 0;
    drain();
    bool whole = finish();
    keep_outputs();
    await_relay();
    return whole || !cut_off ? exit_code() : CANNOT_STORE;
}
