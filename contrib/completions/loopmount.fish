complete -c loopmount -l cache -d 'Show what is kept on disk of earlier mounts; --cache=clear removes it (with IMAGE: of that one)' -r -f -a "show\t'Show what there is'
clear\t'Remove it'"
complete -c loopmount -s P -l partition -d 'Partition by number, label, UUID, or as in /dev (sda1)' -r
complete -c loopmount -l cow -d 'Keep writes apart from the image: until the end, or in FILE' -r -F
complete -c loopmount -l via -d 'The means: auto, nbd, loop, fuse' -r -f -a "auto\t'The best that is possible here'
nbd\t'The kernel\'s NBD client, the kernel\'s file system'
loop\t'A loop device (over a FUSE file when the image must be decoded), the kernel\'s file system'
fuse\t'The file system read in our own process'"
complete -c loopmount -s o -d 'Options for the file system, as after mount -o' -r
complete -c loopmount -l layer -d 'Use this layer (repeat for more); raw ends probing' -r
complete -c loopmount -l references -d 'Let the image refer to files in DIR too, not only in its own folder (repeat for more)' -r -F
complete -c loopmount -l key-file -d 'Key of an encrypted image: FILE as it is, or - (repeat to try more)' -r -F
complete -c loopmount -l key-file-offset -d 'Bytes of the key file before the key' -r
complete -c loopmount -l key-file-size -d 'Bytes of the key, where it is not all of the key file' -r
complete -c loopmount -l key-fd -d 'Passphrase of an encrypted image, from descriptor N' -r
complete -c loopmount -l cache-size -d 'Memory for decoded blocks and decoders (64M, 1G)' -r
complete -c loopmount -l cache-limit -d 'Most disk space for what is kept for the next mount, 0 for none [default: 10G]' -r
complete -c loopmount -l temp-dir -d 'Folder for temporary files [default: $TMPDIR or /var/tmp]' -r -F
complete -c loopmount -l header -d 'For an http image: a header field for its host' -r
complete -c loopmount -l ca -d 'For an https image: trust the certificates in FILE (PEM) in place of the system\'s' -r -F
complete -c loopmount -s u -l umount -d 'Unmount'
complete -c loopmount -l lazy -d 'With -u: detach now, even if it is in use'
complete -c loopmount -l info -d 'Show what the image is: layers, sizes, partitions, file systems'
complete -c loopmount -l list -d 'List what is mounted'
complete -c loopmount -l stats -d 'Show what was read of a mount so far: requests, bytes, times'
complete -c loopmount -l json -d 'With --info, --list, --stats or --cache: as JSON'
complete -c loopmount -l fuse -d 'Show the decoded disk (with -P: the partition) as one file'
complete -c loopmount -s w -l write -d 'Let writes go to the image'
complete -c loopmount -l commit -d 'Write what --cow=FILE has kept back to the image; FILE is empty then'
complete -c loopmount -l download -d 'For an http image: fetch it whole first'
complete -c loopmount -l verify -d 'Serve nothing of a block before its check has passed'
complete -c loopmount -l prefetch -d 'Read all of it once, in the background (without a TARGET: now), so that it is in the cache'
complete -c loopmount -l foreground -d 'Stay in the foreground'
complete -c loopmount -s v -l verbose -d 'More messages in the log (repeat for more)'
complete -c loopmount -s h -l help -d 'Print help (see more with \'--help\')'
complete -c loopmount -s V -l version -d 'Print version'
