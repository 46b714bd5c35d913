/*
 * A process that gives birth as it is told, in a session of its own. Everything in it ends when stdin does.
 *
 *   births          starts with "ok MAIN THREAD SERVER", the tids of its threads; the first two take orders, one per line:
 *                   WHO fork | thread | vfork | parent | exec | exit, where WHO is m or t; each is answered by "ok ID".
 *                   vfork's child executes a program, parent makes a child with CLONE_PARENT, exec answers as a start does
 *   births storm WORKERS KIND PAUSE
 *                   starts with "ok PID"; "go" and "stop" begin and end a storm of forks (KIND f), threads (t) or both and
 *                   orphans and programs too (m) by WORKERS processes, with PAUSE microseconds between two births; answered by
 *                   "ok BIRTHS" when all are at rest, and some children with threads are left
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define KEPT 5

static pthread_attr_t small;

static void die(const char *what)
{
	dprintf(2, "births: %s: %s\n", what, strerror(errno));
	kill(0, SIGKILL);
}

static void *wait_for_ever(void *arg)
{
	if (arg)
		*(_Atomic long *)arg = syscall(SYS_gettid);
	for (;;)
		pause();
}

static pthread_t thread(void *(*body)(void *), void *arg)
{
	pthread_t thread;

	errno = pthread_create(&thread, &small, body, arg);
	if (errno)
		die("pthread_create");
	return thread;
}

/* ---- orders */

static struct agent {
	sem_t go, done;
	char what[16];
	long tid, result;
} agents[2];

static long child_of(int flags)
{
	long pid = syscall(SYS_clone, SIGCHLD | flags, 0, 0, 0, 0);

	if (pid == 0)
		for (;;)
			pause();
	return pid;
}

static long vfork_exec(void)
{
	pid_t pid = vfork();

	if (pid == 0) {
		execl("/proc/thread-self/exe", "births", "wait", NULL);
		_exit(1);
	}
	return pid;
}

static void *obey(void *arg)
{
	struct agent *a = arg;

	a->tid = syscall(SYS_gettid);
	sem_post(&a->done);
	for (;;) {
		_Atomic long tid = 0;

		while (sem_wait(&a->go) < 0)
			;
		if (!strcmp(a->what, "fork")) {
			a->result = child_of(0);
		} else if (!strcmp(a->what, "parent")) {
			a->result = child_of(CLONE_PARENT);
		} else if (!strcmp(a->what, "vfork")) {
			a->result = vfork_exec();
		} else if (!strcmp(a->what, "thread")) {
			thread(wait_for_ever, (void *)&tid);
			while (!tid)
				sched_yield();
			a->result = tid;
		} else if (!strcmp(a->what, "exec")) {
			execl("/proc/thread-self/exe", "births", NULL);
			die("exec");
		} else if (!strcmp(a->what, "exit")) {
			sem_post(&a->done);
			syscall(SYS_exit, 0);
		}
		sem_post(&a->done);
	}
}

static void *serve(void *arg)
{
	char line[64], who;

	(void)arg;
	for (int i = 0; i < 2; i++)
		while (sem_wait(&agents[i].done) < 0)
			;
	printf("ok %ld %ld %ld\n", agents[0].tid, agents[1].tid, syscall(SYS_gettid));
	fflush(stdout);
	while (fgets(line, sizeof line, stdin)) {
		struct agent *a;

		line[strcspn(line, "\n")] = 0;
		who = line[0];
		a = &agents[who == 't'];
		a->result = 0;
		snprintf(a->what, sizeof a->what, "%s", line + 2);
		sem_post(&a->go);
		while (sem_wait(&a->done) < 0)
			;
		printf("ok %ld\n", a->result);
		fflush(stdout);
	}
	kill(0, SIGKILL);
	return NULL;
}

/* ---- storm */

static struct shared {
	_Atomic int running, resting;
	_Atomic long births;
} *shared;

static void *nothing(void *arg)
{
	return arg;
}

static void *exec_and_exit(void *arg)
{
	(void)arg;
	execl("/proc/thread-self/exe", "births", "nothing", NULL);
	_exit(1);
}

static pid_t born(void)
{
	pid_t pid = fork();

	if (pid < 0)
		die("fork");
	shared->births++;
	return pid;
}

static void birth(char kind, unsigned *seed)
{
	int what = kind == 'f' ? 0 : kind == 't' ? 4 : rand_r(seed) % 8;
	pid_t pid;

	if (what == 4 || what == 5) {
		shared->births++;
		pthread_join(thread(nothing, NULL), NULL);
		return;
	}
	pid = born();
	if (pid == 0) {
		if (what == 6 && born() == 0)
			usleep(rand_r(seed) % 2000);
		if (what == 7) {
			thread(exec_and_exit, NULL);
			shared->births++;
			pause();
		}
		_exit(0);
	}
	waitpid(pid, NULL, 0);
}

static void work(char kind, int pause_us, unsigned seed)
{
	for (int kept = 0;; kept++) {
		while (!shared->running)
			usleep(1000);
		for (int n = 0; shared->running; n++) {
			birth(kind, &seed);
			if (kept < KEPT && n % 20 == 0) {
				kept++;
				if (born() == 0) {
					thread(wait_for_ever, NULL);
					shared->births++;
					wait_for_ever(NULL);
				}
			}
			if (pause_us)
				usleep(pause_us);
		}
		shared->resting++;
	}
}

static void storm(int workers, char kind, int pause_us)
{
	char line[64];

	shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED)
		die("mmap");
	printf("ok %d\n", getpid());
	fflush(stdout);
	while (fgets(line, sizeof line, stdin)) {
		if (!strcmp(line, "go\n")) {
			shared->resting = 0;
			shared->running = 1;
			for (int i = 0; i < workers; i++)
				if (fork() == 0)
					work(kind, pause_us, i + 1);
		} else {
			shared->running = 0;
			while (shared->resting < workers)
				usleep(1000);
			/* The orphans are still to end. */
			usleep(20000);
		}
		printf("ok %ld\n", shared->births);
		fflush(stdout);
	}
	kill(0, SIGKILL);
}

int main(int argc, char **argv)
{
	if (argc > 1 && !strcmp(argv[1], "nothing"))
		return 0;
	if (argc > 1 && !strcmp(argv[1], "wait"))
		wait_for_ever(NULL);
	setsid();
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 65536);
	if (argc > 4)
		storm(atoi(argv[2]), argv[3][0], atoi(argv[4]));
	for (int i = 0; i < 2; i++) {
		sem_init(&agents[i].go, 0, 0);
		sem_init(&agents[i].done, 0, 0);
	}
	thread(obey, &agents[1]);
	thread(serve, NULL);
	obey(&agents[0]);
	return 0;
}
