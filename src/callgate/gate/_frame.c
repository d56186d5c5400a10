/* SPDX-License-Identifier: MIT */
/* The usual way of a frame, compiled: what `PlainFrame.look` and `Slot.run` do in frame.py and
 * vectors.py, step by step. All that is not usual goes to the same methods in Python.
 *
 * The GIL is held from the first look to the last store, but while the device's lock is waited for
 * and while the stub runs. So to other threads each step is one, as a bytecode is, and what
 * vectors.py says of their order holds here too.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

/* docs/abi.md, section 5 */
enum { FREE, READY, RUNNING, DONE };
#define FRAME_SIZE     128
#define FLAG_INTERRUPT 2u
#define FLAGS_DRIVERS  0xffffffu /* the count of results is the host's to write */
#define FAULTED        (10ull << 32)
#define TRIES          1000 /* looks at a frame whose driver keeps changing its mind */

#define STATE(head)  ((uint32_t)(head))
#define VECTOR(head) ((uint32_t)((head) >> 32))

#if defined(__x86_64__) || defined(__i386__)
#define relax() __builtin_ia32_pause()
#else
#define relax() ((void)0)
#endif

typedef struct {
	PyObject_HEAD
	PyObject *gate, *calls, *slot, *words, *quads, *payload, *woken;
	Py_buffer memory; /* all of what `quads` is a view of: it stays where it is */
	uint64_t *at;     /* NULL when it was dropped */
	char taken;       /* somebody answers it */
} Frame;

typedef struct {
	PyObject_HEAD
	PyObject *frames; /* a tuple */
	PyObject *otherwise;
	vectorcallfunc call;
} Bell;

/* The classes of vectors.py and target.py, and the attributes in __slots__ that a call touches. */
static struct {
	PyTypeObject *binding, *target, *slot, *table;
} types;
static struct slots {
	Py_ssize_t binding_target, binding_quota, binding_refusal, binding_calls;
	Py_ssize_t target_usual, target_done, target_lock, target_frame_stub;
	Py_ssize_t slot_binding, slot_thread, slot_table, table_drains;
} at;
static PyObject *call_refused;
static PyTypeObject *frame_type;
static PyObject *acquire, *release, *wake, *judge, *explain, *tell_done;

static PyObject *get(PyObject *object, Py_ssize_t offset)
{
	return *(PyObject **)((char *)object + offset);
}

static void set(PyObject *object, Py_ssize_t offset, PyObject *value)
{
	PyObject **place = (PyObject **)((char *)object + offset), *old = *place;

	*place = Py_NewRef(value);
	Py_XDECREF(old);
}

static uint64_t *quads(Frame *self)
{
	return self->at;
}

static uint32_t *words(Frame *self)
{
	return (uint32_t *)self->at;
}

/* --- one call --------------------------------------------------------------------------------- */

/* Call `method` of `object` without arguments, whether or not an exception is on its way. One that
 * it raises takes the other's place.
 */
static int call_anyway(PyObject *object, PyObject *method)
{
	PyObject *kind, *value, *traceback, *result;

	PyErr_Fetch(&kind, &value, &traceback);
	result = PyObject_CallMethodNoArgs(object, method);
	if (!result) {
		Py_XDECREF(kind);
		Py_XDECREF(value);
		Py_XDECREF(traceback);
		return -1;
	}
	Py_DECREF(result);
	PyErr_Restore(kind, value, traceback);
	return 0;
}

/* `Slot.run`, whose numbers these are. 0, or -1 with an exception. */
static int run(Frame *self, PyObject *binding, PyObject *target)
{
	PyObject *const arguments[] = { self->quads, self->payload };
	PyObject *lock = get(target, at.target_lock), *slot = self->slot, *refusal, *result = NULL;
	PyObject *thread, *counted, *calls;
	int drains;

	if (lock != Py_None) {
		result = PyObject_CallMethodNoArgs(lock, acquire);
		if (!result)
			return -1;
		Py_CLEAR(result);
	}
	thread = PyLong_FromUnsignedLong(PyThread_get_thread_ident());
	if (thread) {
		set(slot, at.slot_thread, thread);
		Py_DECREF(thread);
		set(slot, at.slot_binding, binding); /* 1 */
		refusal = get(binding, at.binding_refusal); /* 2 */
		if (refusal != Py_None) {
			PyObject *error = PyObject_CallOneArg(call_refused, refusal);

			if (error)
				PyErr_SetObject(call_refused, error);
			Py_XDECREF(error);
		} else {
			calls = get(binding, at.binding_calls);
			counted = Py_TYPE(calls)->tp_iternext(calls);
			Py_XDECREF(counted);
			if (counted)
				result = PyObject_Vectorcall(get(target, at.target_frame_stub),
							     arguments, 2, NULL);
		}
		set(slot, at.slot_binding, Py_None); /* 3 */
	}
	drains = PyObject_IsTrue(get(get(slot, at.slot_table), at.table_drains)); /* 4 */
	if (drains && call_anyway(get(slot, at.slot_table), wake))
		Py_CLEAR(result);
	if (lock != Py_None && call_anyway(lock, release))
		Py_CLEAR(result);
	Py_XDECREF(result);
	return result ? 0 : -1;
}

/* What a method of ours in Python says that the second quad is to be; FAULTED with an exception. */
static uint64_t said(PyObject *answer)
{
	uint64_t quad = FAULTED;

	if (answer) {
		quad = PyLong_AsUnsignedLongLong(answer);
		if (PyErr_Occurred())
			quad = FAULTED;
		Py_DECREF(answer);
	}
	return quad;
}

static uint64_t answer_usual(Frame *self, PyObject *binding, PyObject *target, uint32_t flags)
{
	PyObject *kind, *value, *traceback, *number, *answer = NULL;

	if (!run(self, binding, target))
		return PyLong_AsUnsignedLongLong(get(target, at.target_done));
	if (!PyErr_ExceptionMatches(PyExc_Exception))
		return FAULTED;
	PyErr_Fetch(&kind, &value, &traceback);
	PyErr_NormalizeException(&kind, &value, &traceback);
	if (traceback)
		PyException_SetTraceback(value, traceback);
	number = PyLong_FromUnsignedLong(flags);
	if (number)
		answer = PyObject_CallMethodObjArgs((PyObject *)self, explain, number, binding, value,
						    NULL);
	Py_XDECREF(number);
	Py_XDECREF(kind);
	Py_XDECREF(value);
	Py_XDECREF(traceback);
	return said(answer);
}

static uint64_t answer_other(Frame *self, uint32_t vector, uint32_t flags)
{
	PyObject *first = PyLong_FromUnsignedLong(vector), *second = PyLong_FromUnsignedLong(flags);
	PyObject *answer = NULL;

	if (first && second)
		answer = PyObject_CallMethodObjArgs((PyObject *)self, judge, first, second, NULL);
	Py_XDECREF(first);
	Py_XDECREF(second);
	return said(answer);
}

/* Claim the frame if it is READY. 1 when it is, with its binding (a new reference) or NULL. */
static int claim(Frame *self, uint64_t *head, PyObject **binding)
{
	unsigned int tries = 0;
	PyObject *key;

	for (;;) {
		if (self->taken || !self->at || tries++ == TRIES)
			return 0;
		self->taken = 1;
		/* State and vector in one load: they were stored in one, or the vector before. */
		*head = __atomic_load_n(quads(self), __ATOMIC_ACQUIRE);
		if (STATE(*head) == READY)
			break;
		self->taken = 0;
		/* Who stored READY just now may have found the frame taken, and counts on us. */
		if (STATE(__atomic_load_n(quads(self), __ATOMIC_ACQUIRE)) != READY)
			return 0;
	}
	key = PyLong_FromUnsignedLongLong(*head);
	*binding = key ? PyDict_GetItemWithError(self->calls, key) : NULL;
	if (*binding && !PyObject_TypeCheck(*binding, types.binding))
		*binding = NULL;
	Py_XINCREF(*binding);
	Py_XDECREF(key);
	return 1;
}

PyDoc_STRVAR(frame_look_doc, "Answer the frame if it is READY.");

static PyObject *frame_look(Frame *self, PyObject *const *arguments, Py_ssize_t count)
{
	const int from_watcher = count > 0 && arguments[0] == Py_True;
	PyObject *binding, *target, *told;
	uint32_t flags, interrupt = 0;
	uint64_t head, answer;

	if (!claim(self, &head, &binding))
		Py_RETURN_NONE;
	/* Who rings from now on sees a frame that is being answered. */
	__atomic_store_n(words(self), RUNNING, __ATOMIC_RELAXED);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	/* From here on only the copy is judged. */
	flags = __atomic_load_n(words(self) + 2, __ATOMIC_RELAXED);
	target = binding ? get(binding, at.binding_target) : NULL;
	if (PyErr_Occurred()) {
		answer = FAULTED;
	} else if (target && PyObject_TypeCheck(target, types.target) &&
		   get(binding, at.binding_quota) == Py_None &&
		   PyLong_AsLongLong(get(target, at.target_usual)) == flags) {
		answer = answer_usual(self, binding, target, flags);
	} else {
		flags &= FLAGS_DRIVERS;
		interrupt = flags & FLAG_INTERRUPT;
		answer = answer_other(self, VECTOR(head), flags);
	}
	Py_XDECREF(binding);
	/* Results, then status, then the state: whoever sees DONE sees all of them. The frame is given
	 * back before that: who sees DONE may ring at once, and is not to find it taken.
	 */
	quads(self)[1] = answer;
	self->taken = 0;
	__atomic_store_n(words(self), DONE, __ATOMIC_RELEASE);
	if (PyErr_Occurred())
		return NULL;
	if (interrupt) {
		told = PyObject_CallMethodNoArgs(self->gate, tell_done);
		if (!told)
			return NULL;
		Py_DECREF(told);
	}
	if (self->woken && self->woken != Py_None && !from_watcher)
		return PyObject_CallNoArgs(self->woken);
	Py_RETURN_NONE;
}

PyDoc_STRVAR(frame_clear_doc, "Make it FREE, unless it is being answered. All else stays: who has just "
			      "seen DONE reads on.");

static PyObject *frame_clear(Frame *self, PyObject *unused)
{
	(void)unused;
	if (!self->taken && self->at)
		__atomic_store_n(words(self), FREE, __ATOMIC_RELEASE);
	Py_RETURN_NONE;
}

/* --- doorbells -------------------------------------------------------------------------------- */

/* A write to the doorbell: (offset, size, value). */
static PyObject *bell_call(PyObject *callable, PyObject *const *arguments, size_t count,
			   PyObject *names)
{
	Bell *self = (Bell *)callable;

	if (PyVectorcall_NARGS(count) == 3 && !names && PyLong_Check(arguments[2])) {
		const long offset = PyLong_AsLong(arguments[0]), size = PyLong_AsLong(arguments[1]);
		int overflow;
		const long long index = PyLong_AsLongLongAndOverflow(arguments[2], &overflow);

		if (!offset && size == 4 && index >= 0 && index < PyTuple_GET_SIZE(self->frames))
			return frame_look((Frame *)PyTuple_GET_ITEM(self->frames, index), NULL, 0);
		if (PyErr_Occurred())
			return NULL;
	}
	return PyObject_Vectorcall(self->otherwise, arguments, count, names);
}

static int bell_init(Bell *self, PyObject *arguments, PyObject *keywords)
{
	PyObject *frames, *otherwise;
	Py_ssize_t i;

	(void)keywords;
	if (self->frames || !PyArg_ParseTuple(arguments, "O!O", &PyTuple_Type, &frames, &otherwise))
		return -1;
	for (i = 0; i < PyTuple_GET_SIZE(frames); i++) {
		if (!PyObject_TypeCheck(PyTuple_GET_ITEM(frames, i), frame_type)) {
			PyErr_SetString(PyExc_TypeError, "a doorbell must ring for compiled frames");
			return -1;
		}
	}
	self->frames = Py_NewRef(frames);
	self->otherwise = Py_NewRef(otherwise);
	self->call = bell_call;
	return 0;
}

static int bell_traverse(Bell *self, visitproc visit, void *arg)
{
	Py_VISIT(Py_TYPE(self));
	Py_VISIT(self->frames);
	Py_VISIT(self->otherwise);
	return 0;
}

static PyObject *bell_refuse(PyObject *self, PyObject *const *arguments, size_t count,
			     PyObject *names)
{
	(void)self, (void)arguments, (void)count, (void)names;
	PyErr_SetString(PyExc_TypeError, "a doorbell must have frames before it rings");
	return NULL;
}

static PyObject *bell_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
	Bell *self = (Bell *)PyType_GenericNew(type, arguments, keywords);

	if (self)
		self->call = bell_refuse;
	return (PyObject *)self;
}

static int bell_drop(Bell *self)
{
	self->call = bell_refuse;
	Py_CLEAR(self->frames);
	Py_CLEAR(self->otherwise);
	return 0;
}

static void bell_dealloc(Bell *self)
{
	PyTypeObject *type = Py_TYPE(self);

	PyObject_GC_UnTrack(self);
	bell_drop(self);
	type->tp_free(self);
	Py_DECREF(type);
}

static PyMemberDef bell_members[] = {
	{ "__vectorcalloffset__", T_PYSSIZET, offsetof(Bell, call), READONLY, NULL },
	{ NULL, 0, 0, 0, NULL },
};

static PyType_Slot bell_slots[] = {
	{ Py_tp_doc, "Bell(frames, otherwise): a write of a frame's index rings for it; otherwise(...) "
		     "takes all others." },
	{ Py_tp_init, bell_init },
	{ Py_tp_new, bell_new },
	{ Py_tp_dealloc, bell_dealloc },
	{ Py_tp_traverse, bell_traverse },
	{ Py_tp_clear, bell_drop },
	{ Py_tp_call, PyVectorcall_Call },
	{ Py_tp_members, bell_members },
	{ 0, NULL },
};

static PyType_Spec bell_spec = {
	.name = "callgate.gate._frame.Bell",
	.basicsize = sizeof(Bell),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL,
	.slots = bell_slots,
};

/* --- watching --------------------------------------------------------------------------------- */

PyDoc_STRVAR(watch_doc, "watch(frames, rounds): look at all frames so often, and answer those that are "
			"READY; whether one was.");

static PyObject *watch(PyObject *module, PyObject *const *arguments, Py_ssize_t count)
{
	PyObject *const from_watcher[] = { Py_True };
	PyObject *frames, *done;
	Py_ssize_t i;
	long rounds;
	int found = 0;

	(void)module;
	if (count != 2 || !PyTuple_Check(arguments[0])) {
		PyErr_SetString(PyExc_TypeError, "watch takes a tuple of frames and a number");
		return NULL;
	}
	frames = arguments[0];
	rounds = PyLong_AsLong(arguments[1]);
	if (rounds == -1 && PyErr_Occurred())
		return NULL;
	for (i = 0; i < PyTuple_GET_SIZE(frames); i++) {
		if (!PyObject_TypeCheck(PyTuple_GET_ITEM(frames, i), frame_type)) {
			PyErr_SetString(PyExc_TypeError, "what is watched must be compiled frames");
			return NULL;
		}
	}
	for (; rounds > 0; rounds--) {
		for (i = 0; i < PyTuple_GET_SIZE(frames); i++) {
			Frame *frame = (Frame *)PyTuple_GET_ITEM(frames, i);

			if (!frame->at || __atomic_load_n(words(frame), __ATOMIC_RELAXED) != READY)
				continue;
			found = 1;
			done = frame_look(frame, from_watcher, 1);
			if (!done)
				return NULL;
			Py_DECREF(done);
		}
		relax();
	}
	return PyBool_FromLong(found);
}

/* --- frames: the class ------------------------------------------------------------------------ */

static int frame_init(Frame *self, PyObject *arguments, PyObject *keywords)
{
	PyObject *gate, *calls, *words, *quads, *payload, *slot;
	const Py_buffer *view;

	if (keywords && PyDict_GET_SIZE(keywords)) {
		PyErr_SetString(PyExc_TypeError, "a frame's arguments must have no names");
		return -1;
	}
	if (self->at ||
	    !PyArg_ParseTuple(arguments, "OO!OO!OO!", &gate, &PyDict_Type, &calls, &words,
			      &PyMemoryView_Type, &quads, &payload, types.slot, &slot))
		return -1;
	view = PyMemoryView_GET_BUFFER(quads);
	if (!PyMemoryView_GET_BASE(quads) || view->readonly || view->len != FRAME_SIZE || (uintptr_t)view->buf % sizeof(uint64_t) ||
	    !PyBuffer_IsContiguous(view, 'C')) {
		PyErr_SetString(PyExc_ValueError, "a frame must be 128 aligned bytes");
		return -1;
	}
	/* Not the view itself: one that is looked at cannot be collected. */
	if (PyObject_GetBuffer(PyMemoryView_GET_BASE(quads), &self->memory, PyBUF_WRITABLE))
		return -1;
	self->at = view->buf;
	self->gate = Py_NewRef(gate);
	self->calls = Py_NewRef(calls);
	self->words = Py_NewRef(words);
	self->quads = Py_NewRef(quads);
	self->payload = Py_NewRef(payload);
	self->slot = Py_NewRef(slot);
	self->woken = Py_NewRef(Py_None);
	return 0;
}

static int frame_traverse(Frame *self, visitproc visit, void *arg)
{
	Py_VISIT(Py_TYPE(self));
	Py_VISIT(self->gate);
	Py_VISIT(self->calls);
	Py_VISIT(self->slot);
	Py_VISIT(self->words);
	Py_VISIT(self->quads);
	Py_VISIT(self->payload);
	Py_VISIT(self->woken);
	Py_VISIT(self->memory.obj);
	return 0;
}

static int frame_drop(Frame *self)
{
	self->at = NULL;
	PyBuffer_Release(&self->memory);
	Py_CLEAR(self->gate);
	Py_CLEAR(self->calls);
	Py_CLEAR(self->slot);
	Py_CLEAR(self->words);
	Py_CLEAR(self->quads);
	Py_CLEAR(self->payload);
	Py_CLEAR(self->woken);
	return 0;
}

static void frame_dealloc(Frame *self)
{
	PyTypeObject *type = Py_TYPE(self);

	PyObject_GC_UnTrack(self);
	frame_drop(self);
	type->tp_free(self);
	Py_DECREF(type);
}

static PyMethodDef frame_methods[] = {
	{ "look", (PyCFunction)(void (*)(void))frame_look, METH_FASTCALL, frame_look_doc },
	{ "clear", (PyCFunction)frame_clear, METH_NOARGS, frame_clear_doc },
	{ NULL, NULL, 0, NULL },
};

static PyMemberDef frame_members[] = {
	{ "gate", T_OBJECT_EX, offsetof(Frame, gate), READONLY, NULL },
	{ "calls", T_OBJECT_EX, offsetof(Frame, calls), READONLY, NULL },
	{ "slot", T_OBJECT_EX, offsetof(Frame, slot), READONLY, NULL },
	{ "words", T_OBJECT_EX, offsetof(Frame, words), READONLY, NULL },
	{ "quads", T_OBJECT_EX, offsetof(Frame, quads), READONLY, NULL },
	{ "payload", T_OBJECT_EX, offsetof(Frame, payload), READONLY, NULL },
	{ "woken", T_OBJECT_EX, offsetof(Frame, woken), 0, NULL },
	{ NULL, 0, 0, 0, NULL },
};

static PyType_Slot frame_slots[] = {
	{ Py_tp_doc, "A frame's usual way, compiled: see callgate.gate.frame." },
	{ Py_tp_init, frame_init },
	{ Py_tp_new, PyType_GenericNew },
	{ Py_tp_dealloc, frame_dealloc },
	{ Py_tp_traverse, frame_traverse },
	{ Py_tp_clear, frame_drop },
	{ Py_tp_methods, frame_methods },
	{ Py_tp_members, frame_members },
	{ 0, NULL },
};

static PyType_Spec frame_spec = {
	.name = "callgate.gate._frame.Frame",
	.basicsize = sizeof(Frame),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
	.slots = frame_slots,
};

/* --- the module ------------------------------------------------------------------------------- */

/* A class of a module; NULL with an exception. */
static PyTypeObject *find_class(PyObject *module, const char *name)
{
	PyObject *found = module ? PyObject_GetAttrString(module, name) : NULL;

	if (found && !PyType_Check(found)) {
		PyErr_Format(PyExc_TypeError, "%s must be a class", name);
		Py_CLEAR(found);
	}
	return (PyTypeObject *)found;
}

/* Where an attribute in __slots__ lies; 0 with an exception. */
static Py_ssize_t find_slot(PyTypeObject *type, const char *name)
{
	PyObject *descriptor = PyObject_GetAttrString((PyObject *)type, name);
	Py_ssize_t offset = 0;

	if (descriptor && Py_IS_TYPE(descriptor, &PyMemberDescr_Type))
		offset = ((PyMemberDescrObject *)descriptor)->d_member->offset;
	else if (descriptor)
		PyErr_Format(PyExc_TypeError, "%s.%s must lie in __slots__", type->tp_name, name);
	Py_XDECREF(descriptor);
	return offset;
}

static int find_classes(void)
{
	PyObject *vectors = PyImport_ImportModule("callgate.gate.vectors");
	PyObject *target = vectors ? PyImport_ImportModule("callgate.gate.target") : NULL;
	PyObject *call = target ? PyImport_ImportModule("callgate.call") : NULL;
	int found = 0;

	if (call) {
		Py_XSETREF(types.binding, find_class(vectors, "Binding"));
		Py_XSETREF(types.slot, find_class(vectors, "Slot"));
		Py_XSETREF(types.table, find_class(vectors, "VectorTable"));
		Py_XSETREF(types.target, find_class(target, "Target"));
		Py_XSETREF(call_refused, (PyObject *)find_class(call, "CallRefused"));
		found = types.binding && types.slot && types.table && types.target && call_refused;
	}
	Py_XDECREF(vectors);
	Py_XDECREF(target);
	Py_XDECREF(call);
	return found ? 0 : -1;
}

static int find_slots(void)
{
	const struct {
		PyTypeObject *type;
		const char *name;
		Py_ssize_t *offset;
	} wanted[] = {
		{ types.binding, "target", &at.binding_target },
		{ types.binding, "quota", &at.binding_quota },
		{ types.binding, "refusal", &at.binding_refusal },
		{ types.binding, "calls", &at.binding_calls },
		{ types.slot, "binding", &at.slot_binding },
		{ types.slot, "thread", &at.slot_thread },
		{ types.slot, "table", &at.slot_table },
		{ types.table, "drains", &at.table_drains },
		{ types.target, "usual", &at.target_usual },
		{ types.target, "done", &at.target_done },
		{ types.target, "lock", &at.target_lock },
		{ types.target, "frame_stub", &at.target_frame_stub },
	};
	size_t i;

	for (i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++) {
		*wanted[i].offset = find_slot(wanted[i].type, wanted[i].name);
		if (*wanted[i].offset <= 0)
			return -1;
	}
	return 0;
}

static int find_names(void)
{
	const struct {
		PyObject **name;
		const char *text;
	} wanted[] = {
		{ &acquire, "acquire" }, { &release, "release" }, { &wake, "wake" },
		{ &judge, "_judge" },	  { &explain, "_explain" },
		{ &tell_done, "tell_done" },
	};
	size_t i;

	for (i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++) {
		Py_XSETREF(*wanted[i].name, PyUnicode_InternFromString(wanted[i].text));
		if (!*wanted[i].name)
			return -1;
	}
	return 0;
}

static int execute(PyObject *module)
{
	PyObject *bell;
	int status;

	if (find_names() || find_classes() || find_slots())
		return -1;
	Py_XSETREF(frame_type, (PyTypeObject *)PyType_FromSpec(&frame_spec));
	if (!frame_type || PyModule_AddObjectRef(module, "Frame", (PyObject *)frame_type))
		return -1;
	bell = PyType_FromSpec(&bell_spec);
	status = bell ? PyModule_AddObjectRef(module, "Bell", bell) : -1;
	Py_XDECREF(bell);
	return status;
}

static PyMethodDef module_methods[] = {
	{ "watch", (PyCFunction)(void (*)(void))watch, METH_FASTCALL, watch_doc },
	{ NULL, NULL, 0, NULL },
};

static PyModuleDef_Slot module_slots[] = {
	{ Py_mod_exec, execute },
	{ 0, NULL },
};

static PyModuleDef definition = {
	PyModuleDef_HEAD_INIT,
	.m_name = "callgate.gate._frame",
	.m_doc = "The usual way of a frame, compiled.",
	.m_methods = module_methods,
	.m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__frame(void)
{
	return PyModuleDef_Init(&definition);
}
