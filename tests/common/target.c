/*
 * A process that obeys: the test's guinea pig.
 *
 * One command per line on stdin, one answer per line on stdout ("ok N" or "err ERRNO").
 * Every command names the thread that shall carry it out, because a cgroup is inherited
 * from, and affinity belongs to, a thread. The process ends when stdin does, its children
 * when the process does; neither depends on signals, which a frozen target would not get.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX_THREADS 20000
#define MAX_CPUS 8192

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t done = PTHREAD_COND_INITIALIZER; /* what the reader waits for */
static struct {
	pid_t tid;                   /* 0 = free slot */
	pthread_cond_t wake;         /* its own, lest 10,000 threads wake for one command */
} threads[MAX_THREADS];
static pid_t reader;                 /* the thread that reads stdin */
static pid_t departed;               /* the former reader, which has yet to be gone */
static pid_t busy;                   /* the thread that has to run `job`; 0 = none */
static char *job;
static char answer[64];
static int life[2];                  /* nobody writes: EOF tells the children we died */
static pthread_attr_t small;

static pid_t self(void) { return syscall(SYS_gettid); }

static void *serve(void *unused);

static void ok(long n) { snprintf(answer, sizeof answer, "ok %ld", n); }
static void err(int e) { snprintf(answer, sizeof answer, "err %d", e); }
static void result(long n) { if (n < 0) err(errno); else ok(n); }

static int slot(pid_t tid)
{
	for (int i = 0; i < MAX_THREADS; i++)
		if (threads[i].tid == tid)
			return i;
	return -1;
}

/* A detached thread is gone when it cannot be signalled; the leader stays as a zombie. */
static void wait_gone(pid_t tid)
{
	char path[64], stat[512], *state;

	snprintf(path, sizeof path, "/proc/%d/task/%d/stat", getpid(), tid);
	for (;;) {
		if (syscall(SYS_tgkill, getpid(), tid, 0) < 0 && errno == ESRCH)
			return;
		int fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			return;
		ssize_t n = read(fd, stat, sizeof stat - 1);
		close(fd);
		if (n <= 0)
			return;
		stat[n] = 0;
		state = strrchr(stat, ')');
		if (state && (state[2] == 'Z' || state[2] == 'X'))
			return;
		usleep(200);
	}
}

static void do_thread(void)
{
	static pid_t born;
	pthread_t t;

	born = 0;
	int e = pthread_create(&t, &small, serve, &born);
	if (e) {
		err(e);
		return;
	}
	while (!born)
		pthread_cond_wait(&done, &lock);
	ok(born);
}

static void do_fork(void)
{
	pid_t child = fork();

	if (child == 0) {
		char c;

		close(0);
		close(1);
		close(life[1]);
		while (read(life[0], &c, 1) != 0)
			;
		_exit(0);
	}
	result(child);
}

static void do_setaffinity(char *args)
{
	static unsigned long mask[MAX_CPUS / (8 * sizeof(long))];
	pid_t tid = strtol(args, &args, 10);

	memset(mask, 0, sizeof mask);
	while (*args == ' ' || *args == ',') {
		char *end;
		unsigned long cpu = strtoul(args + 1, &end, 10);
		if (end == args + 1)
			break;
		mask[cpu / (8 * sizeof(long))] |= 1UL << cpu % (8 * sizeof(long));
		args = end;
	}
	result(syscall(SYS_sched_setaffinity, tid, sizeof mask, mask));
}

/* "FLAGS HEXBYTES PATH": one open, one write, one close. */
static void do_write(char *args)
{
	static unsigned char data[65536];
	int flags = strtol(args, &args, 10);
	size_t n = 0;
	unsigned byte;

	args++;
	while (n < sizeof data && sscanf(args, "%2x", &byte) == 1 && *args != ' ' && *args != '-') {
		data[n++] = byte;
		args += 2;
	}
	args = strchr(args, ' ');
	int fd = open(args + 1, flags | O_CLOEXEC);
	if (fd < 0) {
		err(errno);
		return;
	}
	result(write(fd, data, n));
	close(fd);
}

static void do_kill(char *args, int reap)
{
	pid_t child = strtol(args, NULL, 10);
	siginfo_t info;

	kill(child, SIGKILL);
	result(waitid(P_PID, child, &info, WEXITED | (reap ? 0 : WNOWAIT)));
}

/* Runs one command in the calling thread, with the lock held. */
static void run(char *line)
{
	char *args = strchr(line, ' ');

	args = args ? args + 1 : line + strlen(line);
	if (!strncmp(line, "thread", 6))
		do_thread();
	else if (!strncmp(line, "fork", 4))
		do_fork();
	else if (!strncmp(line, "setaffinity", 11))
		do_setaffinity(args);
	else if (!strncmp(line, "write", 5))
		do_write(args);
	else if (!strncmp(line, "kill", 4))
		do_kill(args, 0);
	else if (!strncmp(line, "reap", 4))
		do_kill(args, 1);
	else if (!strncmp(line, "setuid", 6))
		result(setresuid(atoi(args), atoi(args), atoi(args)));
	else if (!strncmp(line, "exit", 4))
		_exit(atoi(args));
	else if (!strncmp(line, "exec", 4)) {
		execl(*args ? args : "/proc/thread-self/exe", "target", (char *)NULL);
		err(errno);
	} else
		err(ENOSYS);
}

/* Ends `tid`. The reader hands its office to another thread first; true = it was the caller. */
static int end(pid_t tid)
{
	int i = tid > 0 ? slot(tid) : -1;

	if (i < 0) {
		err(ESRCH);
		return 0;
	}
	threads[i].tid = 0;
	if (tid != self()) {
		pthread_cond_signal(&threads[i].wake);
		pthread_mutex_unlock(&lock);
		wait_gone(tid);
		pthread_mutex_lock(&lock);
		ok(0);
		return 0;
	}
	reader = 0;
	for (i = 0; i < MAX_THREADS && !threads[i].tid; i++)
		;
	if (i == MAX_THREADS)
		_exit(0);
	reader = threads[i].tid;
	departed = tid;
	pthread_cond_signal(&threads[i].wake);
	return 1;
}

/* Reads and passes on commands, with the lock held; returns when the caller has to end. */
static void read_commands(void)
{
	static char *line;
	static size_t size;

	if (departed) {
		wait_gone(departed);
		departed = 0;
		dprintf(1, "ok 0\n");
	}
	for (;;) {
		pthread_mutex_unlock(&lock);
		ssize_t n = getline(&line, &size, stdin);
		pthread_mutex_lock(&lock);
		if (n <= 0)
			_exit(0);
		line[strcspn(line, "\n")] = 0;
		char *command;
		pid_t tid = strtol(line, &command, 10);
		command++;
		if (!strcmp(command, "end")) {
			if (end(tid))
				return;
		} else if (tid == self()) {
			run(command);
		} else if (tid <= 0 || slot(tid) < 0) {
			err(ESRCH);
		} else {
			job = command;
			busy = tid;
			pthread_cond_signal(&threads[slot(tid)].wake);
			while (busy)
				pthread_cond_wait(&done, &lock);
		}
		dprintf(1, "%s\n", answer);
	}
}

/* The life of a thread: wait for a job, the reader's office, or the end. */
static void *serve(void *born)
{
	pid_t me = self();

	pthread_mutex_lock(&lock);
	int i = slot(0);
	if (i < 0)
		_exit(1);
	threads[i].tid = me;
	pthread_cond_init(&threads[i].wake, NULL);
	if (born)
		*(pid_t *)born = me;
	else
		reader = me;
	pthread_cond_broadcast(&done);
	while (threads[i].tid == me) {
		if (reader == me) {
			read_commands();
		} else if (busy == me) {
			run(job);
			busy = 0;
			pthread_cond_broadcast(&done);
		} else {
			pthread_cond_wait(&threads[i].wake, &lock);
		}
	}
	pthread_mutex_unlock(&lock);
	return NULL;
}

int main(void)
{
	signal(SIGINT, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);
	if (pipe2(life, O_CLOEXEC) < 0)
		return 1;
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 65536);
	pthread_attr_setdetachstate(&small, PTHREAD_CREATE_DETACHED);
	dprintf(1, "ok %d\n", getpid());
	serve(NULL);
	pthread_exit(NULL);
}
