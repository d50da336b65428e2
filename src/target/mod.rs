//! The ways an image reaches the user.

pub mod cached;
pub mod kernel_mount;
pub mod kernel_nbd;
pub mod loop_device;

/// Begins every name that we give to a kernel object, before the unit's id: the backend of an nbd
/// device, the name of a loop device.
pub const NAME_PREFIX: &str = "loopmount:";

/// The unit's id in the name of a kernel object; `None` when it is not ours.
#[must_use]
pub fn id_in_name(name: &str) -> Option<&str> {
    let id = name.strip_prefix(NAME_PREFIX)?;
    // A label may follow, see `loop_device`.
    let id = id.split(' ').next()?;
    (!id.is_empty()).then_some(id)
}
