/* What a job may try against PID 1 of its container, the recorder, and a shell cannot:
 *
 *     hostile limit     every limit there is, set to 0, by each way into the kernel; prints what was not refused
 *     hostile forge     the user's queue of signals filled, then signal 44; sleeps, so that the queue stays full
 *     hostile eat       all memory */

#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static struct rlimit none;

static long by_native_call(long limit) { return syscall(SYS_prlimit64, 1, limit, &none, NULL) ? -errno : 0; }

#ifdef __x86_64__
/* As a program of 32 bits calls; its pointers are short, which is why this one is linked to low addresses. */
static long by_call_of_32_bits(long limit)
{
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(340), "b"(1), "c"(limit), "d"(&none), "S"(0) : "memory");
    return (int)result;
}

static long by_call_of_x32(long limit) { return syscall(0x40000000 | SYS_prlimit64, 1, limit, &none, NULL) ? -errno : 0; }
#endif

/* In a process of its own: a kernel without that way kills the caller. */
static void try(const char *way, long (*call)(long))
{
    fflush(stdout);
    if (fork() == 0) {
        for (long limit = 0; limit < 16; limit++)
            if (call(limit) == 0)
                printf("%s: limit %ld was set\n", way, limit);
        fflush(stdout);
        _exit(0);
    }
    wait(NULL);
}

static void forge(void)
{
    sigset_t blocked;
    sigemptyset(&blocked);
    sigaddset(&blocked, 40);
    sigprocmask(SIG_BLOCK, &blocked, NULL);
    long queued = 0;
    while (sigqueue(getpid(), 40, (union sigval){0}) == 0)
        queued++;
    int sent = kill(1, 44);
    printf("%s after %s signals\n", sent ? strerror(errno) : "forged", queued > 100 ? "many" : "few");
    fflush(stdout);
    pause();
}

int main(int argc, char **argv)
{
    const char *what = argc == 2 ? argv[1] : "";
    if (strcmp(what, "limit") == 0) {
        try("native", by_native_call);
#ifdef __x86_64__
        try("32 bits", by_call_of_32_bits);
        try("x32", by_call_of_x32);
#endif
        puts("tried");
    } else if (strcmp(what, "forge") == 0)
        forge();
    else if (strcmp(what, "eat") == 0)
        for (;;)
            memset(malloc(1 << 20), 1, 1 << 20);
    else
        return 2;
    return 0;
}
