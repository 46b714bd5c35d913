# Installs what `cargo build --release` has made. mount(8) looks for its helpers in /sbin only, whatever PREFIX is.

PREFIX ?= /usr/local
SBINDIR ?= /sbin
MANDIR ?= $(PREFIX)/share/man
DESTDIR ?=
CARGO ?= cargo
INSTALL ?= install
# Where the programs are built.
OUT ?= $(or $(CARGO_TARGET_DIR),target)/release

bin = $(DESTDIR)$(PREFIX)/bin
sbin = $(DESTDIR)$(SBINDIR)
man8 = $(DESTDIR)$(MANDIR)/man8

.PHONY: all install uninstall

all:
	$(CARGO) build --release

$(OUT)/cgfuse $(OUT)/mount-cgfuse &:
	$(CARGO) build --release

install: $(OUT)/cgfuse $(OUT)/mount-cgfuse
	$(INSTALL) -d $(bin) $(sbin) $(man8)
	$(INSTALL) -m 755 $(OUT)/cgfuse $(bin)/cgfuse
	$(INSTALL) -m 755 $(OUT)/mount-cgfuse $(sbin)/mount.cgfuse
	ln -sf mount.cgfuse $(sbin)/mount.fuse.cgfuse
	$(INSTALL) -m 644 doc/cgfuse.8 doc/mount.cgfuse.8 $(man8)

uninstall:
	rm -f $(bin)/cgfuse $(sbin)/mount.cgfuse $(sbin)/mount.fuse.cgfuse $(man8)/cgfuse.8 $(man8)/mount.cgfuse.8
