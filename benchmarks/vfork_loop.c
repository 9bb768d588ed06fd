/* The limit of this machine: run PROGRAM N times, at most SLOTS at once, with vfork and exec and nothing else.
 * usage: vfork_loop N SLOTS PROGRAM. One process per CPU (but no more than SLOTS) spawns and waits.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static char *environment[] = {"PATH=/usr/bin:/bin", NULL};

static void spawn(char *program) {
    char *arguments[] = {program, NULL};
    pid_t pid = vfork();
    if (pid == 0) {
        execve(program, arguments, environment);
        _exit(127);
    }
    if (pid < 0) {
        perror("vfork");
        exit(1);
    }
}

static int run(long n, long slots, char *program) {
    long started = 0, failed = 0;
    int status;
    for (; started < n && started < slots; started++)
        spawn(program);
    for (long ended = 0; ended < n; ended++) {
        if (wait(&status) < 0)
            return 1;
        failed += status != 0;
        if (started < n) {
            spawn(program);
            started++;
        }
    }
    return failed != 0;
}

int main(int count, char **arguments) {
    if (count != 4)
        return 2;
    long n = atol(arguments[1]), slots = atol(arguments[2]), loops = sysconf(_SC_NPROCESSORS_ONLN);
    int status, failed = 0;
    if (loops > slots)
        loops = slots;
    for (long i = 0; i < loops; i++) {
        /* what does not divide goes to the first ones */
        long mine = n / loops + (i < n % loops), places = slots / loops + (i < slots % loops);
        if (fork() == 0)
            _exit(run(mine, places, arguments[3]));
    }
    for (long i = 0; i < loops; i++)
        failed |= wait(&status) < 0 || status != 0;
    return failed;
}
