/*
 * A process that founds families in every way and says who has created whom.
 *
 * Orders come on stdin, one per line. Each is answered by lines "CREATOR CHILD TGID", one for each birth, and a line "end". All that
 * was born is dead by then.
 *
 *   storm N             two threads on CPUs of their own make N times a thread, and a child, which makes a child and a thread on the other CPU
 *   threads N           a thread makes N threads one after the other, nothing else
 *   forks N             the same with children
 *   kinds               a thread makes a thread, and children by fork, vfork and clone(CLONE_PARENT); a child's child outlives it
 *   exec PROGRAM        a child's second thread executes PROGRAM (this one with "nothing"), while a third one lives
 *   setuid PROGRAM      a child executes PROGRAM (this one with "wait", set-user-ID); "alive PID" is answered when it has done so
 *   release             ends and reaps that child
 *   churn, rest         four threads make and end threads until "rest"; both are answered by "end" only
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
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

#define MAX 200000

static struct {
	atomic_int nr;
	struct {
		pid_t creator, child, tgid;
	} births[MAX];
} *all;

static int gate[2], answer[2];
static pid_t held;
static atomic_int churning;

static pid_t tid(void)
{
	return syscall(SYS_gettid);
}

static void born(pid_t creator, pid_t child, pid_t tgid)
{
	int i = atomic_fetch_add(&all->nr, 1);

	if (i >= MAX)
		abort();
	all->births[i].creator = creator;
	all->births[i].child = child;
	all->births[i].tgid = tgid;
}

static void *nothing(void *creator)
{
	if (creator)
		born(*(pid_t *)creator, tid(), getpid());
	return NULL;
}

static void thread(void)
{
	pid_t me = tid();
	pthread_t thread;

	if (pthread_create(&thread, NULL, nothing, &me))
		abort();
	pthread_join(thread, NULL);
}

/* Children must not outlive a test that was killed. */
static void child_starts(void)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
}

static void reap(pid_t creator, pid_t child)
{
	if (child < 0)
		abort();
	born(creator, child, child);
	waitpid(child, NULL, __WALL);
}

static void fork_one(void)
{
	pid_t child = fork();

	if (!child)
		_exit(0);
	reap(tid(), child);
}

struct job {
	int n, cpu;
	void (*work)(void);
	pid_t creator;
};

/* Fails where there is no such CPU. */
static void pin(int cpu)
{
	cpu_set_t cpus;

	CPU_ZERO(&cpus);
	CPU_SET(cpu, &cpus);
	sched_setaffinity(0, sizeof(cpus), &cpus);
}

static void family(void)
{
	int cpu = sched_getcpu();
	pid_t child = fork();

	if (!child) {
		child_starts();
		pin(!cpu);
		fork_one();
		thread();
		_exit(0);
	}
	reap(tid(), child);
	thread();
}

static void *worker(void *arg)
{
	struct job *job = arg;

	born(job->creator, tid(), getpid());
	if (job->cpu >= 0)
		pin(job->cpu);
	for (int i = 0; i < job->n; i++)
		job->work();
	return NULL;
}

static void run(int threads, int n, void (*work)(void))
{
	struct job jobs[2];
	pthread_t ids[2];

	for (int i = 0; i < threads; i++) {
		jobs[i] = (struct job){ n, threads > 1 ? i : -1, work, tid() };
		if (pthread_create(&ids[i], NULL, worker, &jobs[i]))
			abort();
	}
	for (int i = 0; i < threads; i++)
		pthread_join(ids[i], NULL);
}

static void kinds(void)
{
	pid_t child, grandchild, me = tid();
	int ends[2], status;

	thread();
	fork_one();
	child = vfork();
	if (!child)
		_exit(0);
	reap(me, child);
	child = syscall(SYS_clone, CLONE_PARENT | SIGCHLD, NULL, NULL, NULL, NULL);
	if (!child)
		_exit(0);
	born(me, child, child);
	/* Nobody here can wait for it: whoever has started this process is its parent. */
	while (!kill(child, 0)) {
		char path[64], stat[256];
		FILE *file;
		size_t len;

		snprintf(path, sizeof(path), "/proc/%d/stat", child);
		file = fopen(path, "r");
		if (!file)
			break;
		len = fread(stat, 1, sizeof(stat) - 1, file);
		fclose(file);
		stat[len] = 0;
		if (strstr(stat, ") Z"))
			break;
	}
	/* The orphan ends when both ends of the pipe here are closed. */
	if (pipe(ends))
		abort();
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	child = fork();
	if (!child) {
		grandchild = fork();
		if (!grandchild) {
			char byte;

			close(ends[1]);
			_exit(read(ends[0], &byte, 1) != 0);
		}
		born(tid(), grandchild, grandchild);
		_exit(0);
	}
	reap(me, child);
	close(ends[0]);
	close(ends[1]);
	wait(&status);
	prctl(PR_SET_CHILD_SUBREAPER, 0);
}

static const char *program;
static atomic_int asleep;

static void *sleeper(void *creator)
{
	born(*(pid_t *)creator, tid(), getpid());
	atomic_store(&asleep, 1);
	pause();
	return NULL;
}

static void *executer(void *creator)
{
	pid_t me = tid();
	pthread_t thread;

	born(*(pid_t *)creator, me, getpid());
	if (pthread_create(&thread, NULL, sleeper, &me))
		abort();
	while (!atomic_load(&asleep))
		sched_yield();
	execl(program, program, "family", NULL);
	_exit(1);
}

static void exec_by_thread(void)
{
	pid_t child = fork();

	if (!child) {
		pid_t me = tid();
		pthread_t thread;

		child_starts();
		pthread_create(&thread, NULL, executer, &me);
		for (;;)
			pause();
	}
	reap(tid(), child);
}

static void set_uid(void)
{
	char byte;

	if (pipe(gate) || pipe(answer))
		abort();
	held = fork();
	if (!held) {
		dup2(gate[0], 0);
		dup2(answer[1], 1);
		close(gate[1]);
		execl(program, program, "wait", NULL);
		_exit(1);
	}
	born(tid(), held, held);
	close(gate[0]);
	close(answer[1]);
	if (read(answer[0], &byte, 1) != 1)
		abort();
	printf("alive %d\n", held);
}

/* As the set-user-ID program: forks a child by order. */
static int wait_here(void)
{
	char byte = 'x';
	pid_t child;

	if (write(1, &byte, 1) != 1 || read(0, &byte, 1) < 0)
		return 1;
	child = fork();
	if (!child)
		_exit(0);
	waitpid(child, NULL, 0);
	return 0;
}

static void *churner(void *arg)
{
	pthread_t thread;

	while (atomic_load(&churning)) {
		if (!pthread_create(&thread, NULL, nothing, NULL))
			pthread_join(thread, NULL);
	}
	return arg;
}

int main(int argc, char **argv)
{
	char line[4096], word[16], arg[4000];
	pthread_t churners[4];
	int done;

	if (argc > 1 && !strcmp(argv[1], "wait"))
		return wait_here();
	if (argc > 1 && !strcmp(argv[1], "family")) {
		/* Executed by a thread. */
		fork();
		return 0;
	}
	all = mmap(NULL, sizeof(*all), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (all == MAP_FAILED)
		return 1;
	setvbuf(stdout, NULL, _IOFBF, 1 << 16);
	while (fgets(line, sizeof(line), stdin)) {
		arg[0] = 0;
		done = sscanf(line, "%15s %3999s", word, arg);
		program = arg;
		if (done < 1)
			continue;
		if (!strcmp(word, "storm"))
			run(2, atoi(arg), family);
		else if (!strcmp(word, "threads"))
			run(1, atoi(arg), thread);
		else if (!strcmp(word, "forks"))
			run(1, atoi(arg), fork_one);
		else if (!strcmp(word, "kinds"))
			run(1, 1, kinds);
		else if (!strcmp(word, "exec"))
			run(1, 1, exec_by_thread);
		else if (!strcmp(word, "setuid"))
			set_uid();
		else if (!strcmp(word, "release")) {
			close(gate[1]);
			waitpid(held, NULL, 0);
		} else if (!strcmp(word, "churn")) {
			atomic_store(&churning, 1);
			for (int i = 0; i < 4; i++)
				pthread_create(&churners[i], NULL, churner, NULL);
		} else if (!strcmp(word, "rest")) {
			atomic_store(&churning, 0);
			for (int i = 0; i < 4; i++)
				pthread_join(churners[i], NULL);
		}
		for (int i = 0; i < atomic_load(&all->nr); i++)
			printf("%d %d %d\n", all->births[i].creator, all->births[i].child, all->births[i].tgid);
		atomic_store(&all->nr, 0);
		printf("end\n");
		fflush(stdout);
	}
	return 0;
}
