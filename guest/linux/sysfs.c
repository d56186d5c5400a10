// SPDX-License-Identifier: GPL-2.0
/*
 * /sys/class/callgate/callgateN: what a device is, and how it is called.
 */
#include <linux/ctype.h>
#include <linux/slab.h>
#include <linux/sysfs.h>

#include "internal.h"

/* Calls that are listed: more are nobody's, and the device chooses how many there are. */
#define CALLGATE_LISTED		1024
#define CALLGATE_LONGEST_TEXT	1024

struct callgate_call_attribute {
	struct device_attribute attribute;
	u32 index;
	char name[CALLGATE_NAME_LENGTH + 1];
};

static ssize_t name_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	const struct callgate *gate = to_callgate(dev);

	return sysfs_emit(buf, "%*pEp\n", (int)strlen(gate->name), gate->name);
}
static DEVICE_ATTR_RO(name);

static ssize_t uuid_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%pUb\n", to_callgate(dev)->uuid);
}
static DEVICE_ATTR_RO(uuid);

static ssize_t version_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%u\n", to_callgate(dev)->device_version);
}
static DEVICE_ATTR_RO(version);

static ssize_t abi_version_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	const u32 version = to_callgate(dev)->abi_version;

	return sysfs_emit(buf, "%u.%u\n", version >> 16, version & 0xffff);
}
static DEVICE_ATTR_RO(abi_version);

static ssize_t features_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	static const char * const names[] = {
		"polled", "notify", "change_interrupt", "done_interrupt",
	};
	const unsigned long features = READ_ONCE(to_callgate(dev)->features);
	unsigned int bit;
	int length = 0;

	for_each_set_bit(bit, &features, ARRAY_SIZE(names))
		length += sysfs_emit_at(buf, length, "%s%s", length ? " " : "", names[bit]);
	return length + sysfs_emit_at(buf, length, "\n");
}
static DEVICE_ATTR_RO(features);

static ssize_t transports_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	const unsigned long ways = READ_ONCE(to_callgate(dev)->ways);
	unsigned int way;
	int length = 0;

	for_each_set_bit(way, &ways, CALLGATE_WAYS) {
		if (way != CALLGATE_WAY_AUTO)
			length += sysfs_emit_at(buf, length, "%s%s", length ? " " : "",
						callgate_way_name(way));
	}
	return length + sysfs_emit_at(buf, length, "\n");
}
static DEVICE_ATTR_RO(transports);

static ssize_t transport_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%s\n", callgate_way_name(READ_ONCE(to_callgate(dev)->way)));
}

static ssize_t transport_store(struct device *dev, struct device_attribute *attr, const char *buf,
			       size_t count)
{
	struct callgate *gate = to_callgate(dev);
	const int way = callgate_parse_way(buf);

	if (way < 0)
		return way;
	if (!test_bit(way, &gate->ways))
		return -EOPNOTSUPP;
	WRITE_ONCE(gate->way, way);
	return count;
}
static DEVICE_ATTR_RW(transport);

static ssize_t frames_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%u\n", to_callgate(dev)->layout.frame_count);
}
static DEVICE_ATTR_RO(frames);

static ssize_t payload_size_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%u\n", callgate_payload_size(to_callgate(dev)));
}
static DEVICE_ATTR_RO(payload_size);

/* poll() on it ends when it changes. */
static ssize_t generation_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%u\n", READ_ONCE(to_callgate(dev)->generation));
}
static DEVICE_ATTR_RO(generation);

/* A number that root may change. */
#define CALLGATE_NUMBER(member, least) \
static ssize_t member##_show(struct device *dev, struct device_attribute *attr, char *buf) \
{ \
	return sysfs_emit(buf, "%u\n", READ_ONCE(to_callgate(dev)->member)); \
} \
static ssize_t member##_store(struct device *dev, struct device_attribute *attr, const char *buf, \
			      size_t count) \
{ \
	unsigned int value; \
	int err = kstrtouint(buf, 0, &value); \
\
	if (err) \
		return err; \
	if (value < (least)) \
		return -EINVAL; \
	WRITE_ONCE(to_callgate(dev)->member, value); \
	return count; \
} \
static DEVICE_ATTR_RW(member)

CALLGATE_NUMBER(timeout_ms, 1);
CALLGATE_NUMBER(spin_us, 0);
CALLGATE_NUMBER(max_pending, 1);

static struct attribute *callgate_attributes[] = {
	&dev_attr_name.attr,
	&dev_attr_uuid.attr,
	&dev_attr_version.attr,
	&dev_attr_abi_version.attr,
	&dev_attr_features.attr,
	&dev_attr_transports.attr,
	&dev_attr_transport.attr,
	&dev_attr_frames.attr,
	&dev_attr_payload_size.attr,
	&dev_attr_generation.attr,
	&dev_attr_timeout_ms.attr,
	&dev_attr_spin_us.attr,
	&dev_attr_max_pending.attr,
	NULL
};

static const struct attribute_group callgate_group = {
	.attrs = callgate_attributes,
};

const struct attribute_group *callgate_groups[] = {
	&callgate_group,
	NULL
};

/* calls/NAME: the signature. */
static ssize_t callgate_call_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	const struct callgate_call_attribute *call =
		container_of(attr, struct callgate_call_attribute, attribute);
	struct callgate *gate = to_callgate(dev);
	struct callgate_record record;
	size_t length = 0;
	char *text;
	int err;

	text = kmalloc(CALLGATE_LONGEST_TEXT, GFP_KERNEL);
	if (!text)
		return -ENOMEM;
	err = callgate_enter(gate, CALLGATE_KILLABLE, 0);
	if (!err) {
		err = callgate_find_record(gate, call->name, call->index, CALLGATE_KILLABLE,
					   &record);
		if (!err)
			length = callgate_read_text(gate, &record, text, CALLGATE_LONGEST_TEXT);
		callgate_leave(gate);
	}
	length = min_t(size_t, length, CALLGATE_LONGEST_TEXT);
	if (!err)
		err = sysfs_emit(buf, "%*pEp\n", (int)length, text);
	kfree(text);
	return err;
}

/* Whether a call's name can be a file's, and is not one already. */
static bool callgate_can_list(const struct callgate *gate, unsigned int listed, const char *name)
{
	const char *at;
	unsigned int i;

	if (!*name || *name == '.')
		return false;
	for (at = name; *at; at++)
		if (!isalnum(*at) && !strchr("_-.", *at) && isascii(*at))
			return false;
	for (i = 0; i < listed; i++)
		if (!strcmp(gate->call_attributes[i].name, name))
			return false;
	return true;
}

/* Before the device is added. */
int callgate_sysfs_init(struct callgate *gate)
{
	const unsigned int count = min_t(unsigned int, gate->layout.entry_count, CALLGATE_LISTED);
	struct callgate_call_attribute *call;
	struct callgate_record record;
	unsigned int i, listed = 0;
	struct attribute **attributes;

	gate->call_attributes = kvcalloc(count, sizeof(*gate->call_attributes), GFP_KERNEL);
	attributes = kvcalloc(count + 1, sizeof(*attributes), GFP_KERNEL);
	gate->calls.attrs = attributes;
	if (!gate->call_attributes || !attributes) {
		callgate_sysfs_exit(gate);
		return -ENOMEM;
	}
	for (i = 0; i < count; i++) {
		if (callgate_read_record(gate, i, CALLGATE_KILLABLE, &record) ||
		    !callgate_can_list(gate, listed, record.name))
			continue;
		call = &gate->call_attributes[listed];
		call->index = i;
		strscpy(call->name, record.name, sizeof(call->name));
		sysfs_attr_init(&call->attribute.attr);
		call->attribute.attr.name = call->name;
		call->attribute.attr.mode = 0444;
		call->attribute.show = callgate_call_show;
		attributes[listed++] = &call->attribute.attr;
	}
	gate->calls.name = "calls";
	gate->call_groups[0] = &gate->calls;
	gate->dev.groups = gate->call_groups;
	return 0;
}

/* After the device was deleted. */
void callgate_sysfs_exit(struct callgate *gate)
{
	gate->dev.groups = NULL;
	kvfree(gate->calls.attrs);
	kvfree(gate->call_attributes);
	gate->calls.attrs = NULL;
	gate->call_attributes = NULL;
}
