#pragma once
#include <stddef.h>
typedef unsigned long long P; /* a device pointer */
typedef size_t S;
typedef void (*call_t)(long ticket);
struct stream;
struct event;

struct stream *stream_new(void);
void stream_free(struct stream *);
int stream_copy(struct stream *, void *to, const void *from, S size);
int stream_record(struct stream *, struct event *);
int stream_wait(struct stream *, struct event *);
void stream_drain(struct stream *);
void stream_drain_all(void); /* of the calling thread */
struct event *event_new(void);
void event_finish(struct event *);
