#!/bin/bash
# Fills DIR, a mounted file system of Linux's own, with one of everything that a tree can hold.
# Usage: rich-tree.sh DIR [no-xattr]. Run by root. Package attr, acl.
set -euo pipefail
export LC_ALL=C
cd "$1"
xattrs=${2:-xattr}

mkdir -p etc usr/bin usr/lib root tmp home/user var/lib/sub deep many acl
cat > etc/os-release <<'TEXT'
NAME="Rich Tree"
ID=rich
TEXT
echo rich > etc/hostname
printf 'one line without an end' > etc/no-newline
: > etc/empty

# Modes and owners. 70000 does not fit into 16 bits.
printf '#!/bin/sh\necho tool\n' > usr/bin/tool;   chmod 755 usr/bin/tool
cp usr/bin/tool usr/bin/setuid;                   chmod 4755 usr/bin/setuid
cp usr/bin/tool usr/bin/setgid;                   chmod 2755 usr/bin/setgid
echo secret > root/secret;                        chmod 600 root/secret; chmod 700 root
echo nothing > etc/no-rights;                     chmod 000 etc/no-rights
chmod 1777 tmp; chmod 2775 var/lib
echo mine > home/user/file;                       chown -R 1000:1001 home/user
echo large > home/user/large-id;                  chown 70000:4000000000 home/user/large-id

# Links.
ln -s tool usr/bin/link
ln -s /etc/os-release usr/lib/absolute
ln -s nowhere/at/all usr/lib/dangling
ln -s "$(printf 'x%.0s' {1..59})" usr/lib/symlink-59
ln -s "$(printf 'x%.0s' {1..60})" usr/lib/symlink-60
ln -s "$(printf 'y%.0s' {1..900})" usr/lib/symlink-900
echo twice > usr/lib/hard-1
ln usr/lib/hard-1 usr/lib/hard-2
ln usr/lib/hard-1 var/lib/hard-3

# Special files.
mknod var/lib/fifo p
mknod var/lib/null c 1 3
mknod var/lib/loop7 b 7 7
mknod var/lib/large-minor c 300 70000

# Names.
long=$(printf 'n%.0s' {1..255})
echo long > "$long"
echo odd > 'with space'
echo odd > $'with\nnewline'
echo odd > '-leading-dash'
echo odd > 'back\slash'
echo odd > $'not-utf8-\xff\xfe'
echo odd > 'grün-日本'
dir=deep
for n in {1..24}; do dir=$dir/level-$n; mkdir "$dir"; done
echo bottom > "$dir/bottom"
for n in {1..700}; do echo "$n" > "many/a file with a name of some length $n"; done

# Data: random, larger than one extent's worth of the first allocation, sparse, fragmented.
random() { # BYTES SEED: the same bytes for the same seed
    openssl enc -aes-128-ctr -nosalt -K "$(printf %032x "$2")" -iv 0 < /dev/zero 2> /dev/null |
        head -c "$1" || true
}
random 3000001 1 > var/lib/random
random 65536 2 > var/lib/exact
seq 1 200000 > var/lib/text
truncate -s 4M var/lib/all-hole
truncate -s 5000000 var/lib/sparse
random 5000 3 | dd of=var/lib/sparse bs=1000 seek=1000 conv=notrunc status=none
random 5000 4 | dd of=var/lib/sparse bs=1000 seek=4990 conv=notrunc status=none
for n in {0..59}; do
    random 4096 $((n + 10)) | dd of=var/lib/frag-1 bs=4096 seek=$((n * 2)) conv=notrunc,fsync status=none
    random 4096 $((n + 80)) | dd of=var/lib/frag-2 bs=4096 seek="$n" conv=notrunc,fsync status=none
done
if [ "$xattrs" = xattr ]; then
    fallocate -l 100000 var/lib/unwritten
    echo start | dd of=var/lib/unwritten conv=notrunc status=none
    echo short > var/lib/beyond-end
    fallocate -l 65536 --keep-size -o 65536 var/lib/beyond-end

    setfattr -n user.note -v 'a value' etc/os-release
    setfattr -n user.empty etc/os-release
    setfattr -n user.binary -v 0x00ff00fe0a etc/os-release
    setfattr -n user.long -v "$(printf 'v%.0s' {1..1500})" etc/hostname
    setfattr -n trusted.secret -v hidden etc/hostname
    setfattr -n security.capability -v 0x0100000200200000000000000000000000000000 usr/bin/tool
    setfattr -n user.on-dir -v dir usr/lib
    setfattr -h -n trusted.on-link -v link usr/bin/link
    for n in {1..12}; do setfattr -n "user.many-$n" -v "$n-$n-$n" etc/empty; done
    echo shared > acl/file
    setfacl -m u:1234:rw,g:70001:r,m::rw acl/file
    setfacl -m u:1234:rwx -d -m g:70001:rx acl
fi

# Times: nanoseconds, before 1970, after 2038.
touch -d '2001-02-03 04:05:06.123456789 UTC' etc/os-release
touch -d '1969-12-31 23:59:58.5 UTC' etc/hostname
touch -d '1931-01-01 00:00:00 UTC' etc/empty
touch -d '2038-01-19 03:14:08.000000001 UTC' etc/no-newline
touch -h -d '2100-01-01 00:00:00.999999999 UTC' usr/bin/link
touch -d '2020-02-02 02:02:02.2 UTC' usr/lib
