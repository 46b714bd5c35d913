//! statfs(2): no blocks, no files, whatever is asked.

use std::path::Path;

use nix::sys::statfs::{FUSE_SUPER_MAGIC, statfs};
use nix::sys::statvfs::statvfs;

use super::trees::{both, both_roots, on_ours_root};

fn all_zero(tree: &Path) {
    for path in [tree.to_owned(), tree.join("tasks")] {
        let fs = statfs(&path).expect("statfs");
        assert_eq!(fs.block_size(), 4096);
        assert_eq!((fs.blocks(), fs.blocks_free(), fs.blocks_available()), (0, 0, 0));
        assert_eq!((fs.files(), fs.files_free()), (0, 0));
        assert_eq!(fs.maximum_name_length(), 255);
        assert_eq!(statvfs(&path).expect("statvfs").fragment_size(), 4096);
    }
}

fn all_zero_in_the_root(root: &Path) {
    all_zero(root);
}

/// FUSE does not let a server choose f_type; the kernel's is 0x27e0eb.
#[test]
fn differs_type() {
    on_ours_root(|root| {
        assert_eq!(statfs(root).expect("statfs").filesystem_type(), FUSE_SUPER_MAGIC);
    });
}

both! { all_zero }
both_roots! { all_zero_in_the_root }
