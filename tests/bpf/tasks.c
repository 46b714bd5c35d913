/*
 * A process with a leader and a second thread that makes tasks. It says what it has on stdout and goes on with each line on stdin;
 * it ends when stdin does.
 *
 *   tasks KIND     thread, fork, vfork, parent (clone with CLONE_PARENT): the second thread makes such a task
 *                  exec: it executes a program; leave: the leader ends, and on another line the thread
 *                  -> "LEADER THREAD"; on a line "TASK"; on a line, when the task has ended, "gone"
 *   tasks reuse    a child's second thread executes a program; the tid that it had is used again at the first moment possible
 *                  -> "CHILD THREAD"; on a line, when both is done, "ok"; on a line, when both are gone, the next round
 *   tasks execs N  executes itself N times in its second thread, while its third creates threads -> "PID"
 *   tasks idle [FD]   -> "PID", or a byte to FD
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/sched.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *kind, *program;
static pid_t leader;
static pthread_mutex_t started = PTHREAD_MUTEX_INITIALIZER;

static pid_t self(void) { return syscall(SYS_gettid); }

static void die(const char *what)
{
	dprintf(2, "tasks: %s: %s\n", what, strerror(errno));
	_exit(1);
}

static void say(const char *what) { if (write(1, what, strlen(what)) < 0) die("write"); }

static void say_number(pid_t n)
{
	char text[32];
	snprintf(text, sizeof text, "%d\n", n);
	say(text);
}

/* Byte by byte: several processes read in turn. */
static void next_line(void)
{
	char c;
	do
		if (read(0, &c, 1) != 1)
			_exit(0);
	while (c != '\n');
}

static void *be_task(void *unused)
{
	say_number(self());
	next_line();
	return unused;
}

static void make_task(void)
{
	pthread_t thread;
	pid_t pid = 0;
	int life[2];
	char c;
	if (!strcmp(kind, "exec"))
		execl(program, program, "idle", NULL), die("exec");
	if (!strcmp(kind, "leave")) {
		next_line();
		say_number(self());
		next_line();
	} else if (!strcmp(kind, "thread")) {
		if (pthread_create(&thread, NULL, be_task, NULL) || pthread_join(thread, NULL))
			die("thread");
	} else {
		if (pipe(life))
			die("pipe");
		if (!strcmp(kind, "fork"))
			pid = fork();
		else if (!strcmp(kind, "vfork"))
			pid = vfork();
		else
			pid = syscall(SYS_clone, CLONE_PARENT | SIGCHLD, 0, 0, 0, 0);
		if (pid == 0) {
			be_task(NULL);
			_exit(0);
		}
		/* A child that is not ours closes this when it ends. */
		close(life[1]);
		if (pid < 0 || read(life[0], &c, 1) || (strcmp(kind, "parent") && waitpid(pid, NULL, 0) != pid))
			die("child");
	}
}

static void *work(void *unused)
{
	char text[64];
	snprintf(text, sizeof text, "%d %d\n", leader, self());
	say(text);
	pthread_mutex_lock(&started);
	make_task();
	say("gone\n");
	next_line();
	_exit(0);
	return unused;
}

/* --- reuse --- */

static struct { atomic_int tid, go; } *shared;
static int ready[2], life[2];

static void *exec_on_order(void *unused)
{
	char fd[16];
	snprintf(fd, sizeof fd, "%d", ready[1]);
	shared->tid = self();
	while (!shared->go)
		;
	execl(program, program, "idle", fd, NULL);
	die("exec");
	return unused;
}

static void wait_for_end(void)
{
	char c;
	close(life[1]);
	_exit(read(life[0], &c, 1) == 0 ? 0 : 1);
}

static void reuse(void)
{
	char text[64], c;
	pthread_t thread;
	shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	for (;;) {
		pid_t child, other;
		if (pipe(ready) || pipe(life))
			die("pipe");
		shared->tid = shared->go = 0;
		if (!(child = fork())) {
			dup2(life[0], 0);
			close(life[1]);
			pthread_create(&thread, NULL, exec_on_order, NULL);
			_exit(read(0, &c, 1) != 0);
		}
		while (!shared->tid)
			;
		snprintf(text, sizeof text, "%d %d\n", child, shared->tid);
		say(text);
		next_line();
		pid_t tid = shared->tid;
		struct clone_args args = { .exit_signal = SIGCHLD, .set_tid = (uintptr_t)&tid, .set_tid_size = 1 };
		shared->go = 1;
		/* The program may be there before the tid is free, and somebody else may get it. */
		struct pollfd there = { ready[0], POLLIN, 0 };
		int late = 0;
		do
			other = syscall(SYS_clone3, &args, sizeof args);
		while (other < 0 && errno == EEXIST && (poll(&there, 1, 0) == 0 || late++ < 1000));
		if (other == 0)
			wait_for_end();
		if ((other < 0 && errno != EEXIST) || read(ready[0], &c, 1) != 1)
			die("reuse");
		say(other < 0 ? "taken\n" : "ok\n");
		next_line();
		close(life[1]);
		if (waitpid(child, NULL, 0) != child || (other > 0 && waitpid(other, NULL, 0) != other))
			die("waitpid");
		close(life[0]), close(ready[0]), close(ready[1]);
	}
}

/* --- execs --- */

static int left;

static void *nothing(void *unused) { return unused; }

static void *exec_again(void *unused)
{
	char text[16];
	snprintf(text, sizeof text, "%d", left - 1);
	execl(program, program, "execs", text, NULL);
	die("exec");
	return unused;
}

static void execs(void)
{
	pthread_t thread;
	if (left == 0) {
		be_task(NULL);
		return;
	}
	if (pthread_create(&thread, NULL, exec_again, NULL))
		die("thread");
	for (;;)
		if (!pthread_create(&thread, NULL, nothing, NULL))
			pthread_join(thread, NULL);
}

int main(int argc, char **argv)
{
	pthread_t thread;
	(void)argc;
	kind = argv[1];
	program = argv[0];
	leader = self();
	if (!strcmp(kind, "idle")) {
		if (argv[2] ? write(atoi(argv[2]), "x", 1) != 1 : 0)
			die("write");
		if (!argv[2])
			say_number(leader);
		for (char c; read(0, &c, 1) > 0;)
			;
	} else if (!strcmp(kind, "reuse")) {
		reuse();
	} else if (!strcmp(kind, "execs")) {
		left = atoi(argv[2]);
		execs();
	} else {
		pthread_mutex_lock(&started);
		if (pthread_create(&thread, NULL, work, NULL))
			die("thread");
		next_line();
		pthread_mutex_unlock(&started);
		if (!strcmp(kind, "leave"))
			syscall(SYS_exit, 0);
		for (;;)
			pause();
	}
	return 0;
}
