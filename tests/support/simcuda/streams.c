/* Streams and events. Work is done either at once (the order in which it was queued) or, after sim_lazy(1), as late as
 * CUDA permits: only when somebody waits for it, and then no more of it than was waited for. A program that is right
 * under both orders waits for what it must; one that forgot an event reads or overwrites a buffer too early under the
 * lazy one, always. A stream and its events belong to one thread here; another may free them while that one has no work
 * under way. */
#include "simcuda.h"
#include <stdlib.h>
#include <string.h>

enum { COPY, RECORD, WAIT, CALL };
struct op { int kind; void *to; const void *from; S size; struct event *event; long mark; call_t call; long ticket; struct op *next; };
struct list { struct stream *first; }; /* of one thread's streams; outlives the thread */
struct stream { struct op *first, *last; struct stream *next; struct list *list; };
struct event { struct stream *stream; long marked, done; }; /* the last record's number, the last one reached */

static int lazy;
static __thread struct list *streams;
static __thread struct stream null_stream;

void sim_lazy(int on) { lazy = on; }

static struct stream *of(struct stream *s) { return s ? s : &null_stream; }
static void step(struct stream *);
static void reach(struct event *e, long mark) { while (e->done < mark && e->stream->first) step(e->stream); }

static void step(struct stream *s)
{
    struct op *o = s->first;
    if (o->kind == WAIT) reach(o->event, o->mark);
    s->first = o->next;
    if (!s->first) s->last = 0;
    if (o->kind == COPY) memcpy(o->to, o->from, o->size);
    if (o->kind == RECORD) o->event->done = o->mark;
    if (o->kind == CALL) o->call(o->ticket);
    free(o);
}

static int queue(struct stream *s, struct op given)
{
    struct op *o = malloc(sizeof *o);
    *o = given;
    s = of(s);
    if (s->last) s->last->next = o; else s->first = o;
    s->last = o;
    if (!lazy) stream_drain(s);
    return 0;
}

struct stream *stream_new(void)
{
    struct stream *s = calloc(1, sizeof *s);
    if (!streams) streams = calloc(1, sizeof *streams);
    s->list = streams;
    s->next = streams->first;
    return streams->first = s;
}
void stream_free(struct stream *s)
{
    for (struct stream **p = &s->list->first; *p; p = &(*p)->next)
        if (*p == s) { *p = s->next; break; }
    while (s->first) { struct op *o = s->first; s->first = o->next; free(o); }
    free(s);
}
int stream_copy(struct stream *s, void *to, const void *from, S n)
{ return queue(s, (struct op){.kind = COPY, .to = to, .from = from, .size = n}); }
int stream_record(struct stream *s, struct event *e)
{ e->stream = of(s); return queue(s, (struct op){.kind = RECORD, .event = e, .mark = ++e->marked}); }
int stream_wait(struct stream *s, struct event *e)
{ return queue(s, (struct op){.kind = WAIT, .event = e, .mark = e->marked}); }
void stream_drain(struct stream *s) { s = of(s); while (s->first) step(s); }
void stream_drain_all(void)
{ for (struct stream *s = streams ? streams->first : 0; s; s = s->next) stream_drain(s); stream_drain(&null_stream); }
struct event *event_new(void) { return calloc(1, sizeof(struct event)); }
void event_finish(struct event *e) { if (e->stream) reach(e, e->marked); }

/* the stand-in of a kernel launch: call(ticket) is made when the stream comes to it */
int sim_launch(struct stream *s, call_t call, long ticket)
{ return queue(s, (struct op){.kind = CALL, .call = call, .ticket = ticket}); }
