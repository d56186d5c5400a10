/* SPDX-License-Identifier: MIT */
/* The guest's writes, on their way from the Unicorn library to a window: what taps.py does, without
 * ctypes in between.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>
#include <structmember.h>

typedef struct {
	PyObject_HEAD
	PyObject *write;   /* (offset, size, value), or by port << 3 | size: (write, offset) */
	PyObject *rest;    /* (address, size, value): takes all that `write` does not */
	PyObject *dropped; /* not empty: all is for `rest` */
	PyObject *fail;    /* (exception) */
	unsigned long long base;
	unsigned long long function, pointer; /* what the library is to call, and with what */
} Tap;

/* A callback cannot raise: the run loop is told. */
static void fail(Tap *self)
{
	PyObject *kind, *value, *traceback, *told;

	PyErr_Fetch(&kind, &value, &traceback);
	PyErr_NormalizeException(&kind, &value, &traceback);
	if (traceback)
		PyException_SetTraceback(value, traceback);
	told = PyObject_CallOneArg(self->fail, value);
	if (!told)
		PyErr_WriteUnraisable(self->fail);
	Py_XDECREF(told);
	Py_XDECREF(kind);
	Py_XDECREF(value);
	Py_XDECREF(traceback);
}

static void pass_on(Tap *self, PyObject *write, uint64_t offset, int size, uint64_t value)
{
	/* The first place is the callee's to use. */
	PyObject *arguments[] = { NULL, PyLong_FromUnsignedLongLong(offset), PyLong_FromLong(size),
				  PyLong_FromUnsignedLongLong(value) };
	PyObject *done = NULL;

	if (arguments[1] && arguments[2] && arguments[3])
		done = PyObject_Vectorcall(write, arguments + 1, 3 | PY_VECTORCALL_ARGUMENTS_OFFSET,
					   NULL);
	if (!done)
		fail(self);
	Py_XDECREF(done);
	Py_XDECREF(arguments[1]);
	Py_XDECREF(arguments[2]);
	Py_XDECREF(arguments[3]);
}

/* UC_HOOK_MEM_WRITE_PROT */
static bool on_write(void *uc, int type, uint64_t address, int size, int64_t value, void *data)
{
	const PyGILState_STATE gil = PyGILState_Ensure();
	Tap *self = data;

	(void)uc, (void)type;
	if (PyList_GET_SIZE(self->dropped) || address & (uint64_t)(size - 1))
		pass_on(self, self->rest, address, size, (uint64_t)value);
	else
		pass_on(self, self->write, address - self->base, size, (uint64_t)value);
	PyGILState_Release(gil);
	return true;
}

/* UC_HOOK_INSN, `out` */
static void on_out(void *uc, uint32_t port, int size, uint32_t value, void *data)
{
	const PyGILState_STATE gil = PyGILState_Ensure();
	Tap *self = data;
	PyObject *key = PyLong_FromUnsignedLong((unsigned long)port << 3 | (unsigned int)size);
	PyObject *place = key ? PyDict_GetItemWithError(self->write, key) : NULL;

	(void)uc;
	Py_XINCREF(place);
	Py_XDECREF(key);
	if (place)
		pass_on(self, PyTuple_GET_ITEM(place, 0),
			PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(place, 1)), size, value);
	else if (PyErr_Occurred())
		fail(self);
	else
		pass_on(self, self->rest, port, size, value);
	Py_XDECREF(place);
	PyGILState_Release(gil);
}

static int tap_init(Tap *self, PyObject *arguments, PyObject *keywords)
{
	PyObject *write, *rest, *dropped, *failed;
	unsigned long long base;

	(void)keywords;
	if (self->write || !PyArg_ParseTuple(arguments, "OKOO!O", &write, &base, &rest, &PyList_Type,
					     &dropped, &failed))
		return -1;
	self->write = Py_NewRef(write);
	self->rest = Py_NewRef(rest);
	self->dropped = Py_NewRef(dropped);
	self->fail = Py_NewRef(failed);
	self->base = base;
	self->function = PyDict_Check(write) ? (uintptr_t)on_out : (uintptr_t)on_write;
	self->pointer = (uintptr_t)self;
	return 0;
}

static int tap_traverse(Tap *self, visitproc visit, void *arg)
{
	Py_VISIT(Py_TYPE(self));
	Py_VISIT(self->write);
	Py_VISIT(self->rest);
	Py_VISIT(self->dropped);
	Py_VISIT(self->fail);
	return 0;
}

static int tap_drop(Tap *self)
{
	Py_CLEAR(self->write);
	Py_CLEAR(self->rest);
	Py_CLEAR(self->dropped);
	Py_CLEAR(self->fail);
	return 0;
}

static void tap_dealloc(Tap *self)
{
	PyTypeObject *type = Py_TYPE(self);

	PyObject_GC_UnTrack(self);
	tap_drop(self);
	type->tp_free(self);
	Py_DECREF(type);
}

static PyMemberDef tap_members[] = {
	{ "function", T_ULONGLONG, offsetof(Tap, function), READONLY, NULL },
	{ "pointer", T_ULONGLONG, offsetof(Tap, pointer), READONLY, NULL },
	{ NULL, 0, 0, 0, NULL },
};

static PyType_Slot tap_slots[] = {
	{ Py_tp_doc, "Tap(write, base, rest, dropped, fail): a callback of the library, for as long as "
		     "it lives." },
	{ Py_tp_init, tap_init },
	{ Py_tp_new, PyType_GenericNew },
	{ Py_tp_dealloc, tap_dealloc },
	{ Py_tp_traverse, tap_traverse },
	{ Py_tp_clear, tap_drop },
	{ Py_tp_members, tap_members },
	{ 0, NULL },
};

static PyType_Spec tap_spec = {
	.name = "callgate.backends.unicorn._tap.Tap",
	.basicsize = sizeof(Tap),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
	.slots = tap_slots,
};

static int execute(PyObject *module)
{
	PyObject *type = PyType_FromSpec(&tap_spec);
	int status = type ? PyModule_AddObjectRef(module, "Tap", type) : -1;

	Py_XDECREF(type);
	return status;
}

static PyModuleDef_Slot module_slots[] = {
	{ Py_mod_exec, execute },
	{ 0, NULL },
};

static PyModuleDef definition = {
	PyModuleDef_HEAD_INIT,
	.m_name = "callgate.backends.unicorn._tap",
	.m_doc = "The guest's writes, from the Unicorn library to a window.",
	.m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__tap(void)
{
	return PyModuleDef_Init(&definition);
}
