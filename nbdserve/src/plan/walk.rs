//! The way from a source to the innermost volume, layer by layer.

use std::path::Path;

use super::choose::{Entry, Partitions};
use super::enter::{Entered, enter, kept_for};
use super::fs::{self, Class};
use super::resolve::{LooksLikeRoot, Resolved, Step};
use super::sample::{read_sample, strongest};
use super::{Content, LayerSpec, Pick, Plan, Purpose, RAW};
use crate::layer::cow::{self, COW};
use crate::layer::luks::LUKS;
use crate::layer::partition::PARTITION;
use crate::layer::raid::read::Depth;
use crate::layer::split::SPLIT;
use crate::layer::vhd::damaged_footer;
use crate::layer::{Verdict, lvm, raid};
use crate::source::split::Series;
use crate::{Access, ByteRange, Cx, Error, Kind, Result, Volume};

/// Most layers of an image; a chosen partition is one.
const MAX_LAYERS: usize = 8;
/// What is on a disk, not what a disk is in: written blocks are kept below the first of these.
pub(super) const ON_DISKS: &[&str] = &["partition", "luks", "lvm", "raid"];

/// What a source on a web server calls itself.
const HTTP: &str = "http";
/// Why there is a layer that keeps writes apart.
pub(super) const KEPT_APART: &str = "writes are kept apart from the image";

/// What the innermost volume turns out to be.
pub(super) enum Found {
    /// Wrapped in a layer, by this evidence.
    Layer(LayerSpec, String),
    /// A disk with partitions, by this evidence.
    Table(String),
    /// Nothing that is to be taken off.
    Content(Content),
}

impl Found {
    /// Whether the disk is inside of it.
    pub(super) fn is_around_a_disk(&self) -> bool {
        matches!(self, Self::Layer(spec, _) if !ON_DISKS.contains(&spec.name()))
    }
}

/// The way from the source to the innermost volume so far.
pub(super) struct Walk<'a> {
    /// With the place of the innermost layer.
    pub(super) cx: Cx,
    pub(super) name: &'a str,
    pub(super) volume: Volume,
    pub(super) chain: Vec<Volume>,
    pub(super) steps: Vec<Step>,
    source_notes: Vec<String>,
    pub(super) source_range: Option<ByteRange>,
    /// Of the partition table that was met last.
    partitions: Option<Partitions>,
    /// Of what was met last that is a member by itself.
    group: Option<Partitions>,
    partition: Option<u32>,
    /// What was asked for may be inside what was chosen.
    is_inside: bool,
}

/// What is to be entered.
pub(super) enum Chosen {
    /// Nothing: the whole is meant.
    Whole,
    /// The partition of this number.
    Partition(u32),
    /// A volume, by layers that lead to it, each with why it is taken.
    Volume(Vec<(LayerSpec, String)>),
}

/// Whether a layer was found by its members, so that a volume has to be chosen.
pub(super) fn is_member(spec: &LayerSpec) -> bool {
    [lvm::LVM.name, raid::RAID.name].contains(&spec.name())
}

/// The name of an image by which it is known in the cache, wherever one is when one asks for it there.
fn full_name(name: &str) -> String {
    if ["http://", "https://"]
        .iter()
        .any(|scheme| name.starts_with(scheme))
    {
        return name.to_owned();
    }
    let path = Path::new(name);
    let full = path.canonicalize().or_else(|_| std::path::absolute(path));
    full.map_or_else(
        |_| name.to_owned(),
        |full| full.to_string_lossy().into_owned(),
    )
}

impl<'a> Walk<'a> {
    pub(super) fn new(source: Volume, name: &'a str, cx: &Cx) -> Self {
        let mut cx = cx.clone();
        if let (None, Some(store)) = (&cx.place, &cx.store) {
            let identity = source.source_identity();
            cx.place = identity.map(|identity| store.place(&identity, &full_name(name)));
        }
        Self {
            cx,
            name,
            source_range: Some(ByteRange::between(0, source.size())),
            chain: vec![source.clone()],
            volume: source,
            steps: Vec::new(),
            source_notes: Vec::new(),
            partitions: None,
            group: None,
            partition: None,
            is_inside: false,
        }
    }

    /// Says that the source is put together from so many files; `named` as the user has it.
    pub(super) fn join(&mut self, parts: usize, named: Option<&LayerSpec>) -> Result<()> {
        if let Some(named) = named {
            (SPLIT.open)(&self.volume, named.args(), &self.cx)
                .map_err(|error| error.in_layer(SPLIT.name))?;
        }
        let file = self.name.rsplit('/').next().unwrap_or(self.name);
        let evidence = Series::of(file)
            .map_or_else(|| format!("{parts} parts"), |series| series.describe(parts));
        let spec = LayerSpec::with_value(SPLIT.name, &parts.to_string())?;
        self.enter(spec, evidence, Vec::new())
    }

    /// Opens the layers that the user named, and `cow` where it belongs among them. Whether probing
    /// ends there.
    pub(super) fn enter_named(
        &mut self,
        layers: &[LayerSpec],
        cow: &mut Option<LayerSpec>,
    ) -> Result<bool> {
        let mut raw = false;
        let mut layers = layers;
        if let Some(parts) = self.volume.parts() {
            let named = layers
                .split_first()
                .filter(|(spec, _)| spec.name() == SPLIT.name);
            if named.is_some() || parts > 1 {
                self.join(parts, named.map(|(spec, _)| spec))?;
            }
            layers = named.map_or(layers, |(_, rest)| rest);
        }
        for spec in layers {
            if spec.name() == RAW {
                raw = true;
                continue;
            }
            if ON_DISKS.contains(&spec.name())
                && let Some(cow) = cow.take()
            {
                self.enter(cow, KEPT_APART.to_owned(), Vec::new())?;
            }
            self.enter(spec.clone(), "named by the user".to_owned(), Vec::new())?;
        }
        Ok(raw)
    }

    /// What a cow layer would lie on.
    pub(super) fn base(&self) -> cow::Base {
        let source = self.chain.first();
        let layers: Vec<_> = self
            .steps
            .iter()
            .map(|step| step.layer.to_string())
            .collect();
        cow::Base {
            name: self.name.to_owned(),
            identity: source.and_then(Volume::source_identity),
            layers: layers.join(" "),
            is_local: self.is_local(),
            has_others: self.chain.iter().any(|volume| !volume.may_be_kept()),
        }
    }

    /// Where members of arrays are looked for: at the ends of partitions where that costs neither a
    /// request over the network nor decoding.
    pub(super) fn depth(&self) -> Depth {
        match self.volume.geometry().access {
            Access::Random if self.is_local() => Depth::Ends,
            _ => Depth::Cheap,
        }
    }

    /// Whether the source is files of this machine.
    fn is_local(&self) -> bool {
        let source = self.chain.first();
        source.is_some_and(|source| source.parts().is_some() && source.name() != HTTP)
    }

    /// Opens a layer on what there is.
    pub(super) fn enter(
        &mut self,
        spec: LayerSpec,
        evidence: String,
        mut notes: Vec<String>,
    ) -> Result<()> {
        self.cx.cancel.check()?;
        let Some(layer) = spec.layer() else {
            // LayerSpec knows no other names than those of layers and this one.
            let what = format!("{RAW} is not a layer that can be opened");
            return Err(Error::new(Kind::Unsupported, what));
        };
        if self.steps.len() >= MAX_LAYERS {
            let what = format!("{} is wrapped in more than {MAX_LAYERS} layers", self.name);
            return Err(Error::new(Kind::Limit, what)
                .hint("--layer NAME... --layer raw opens the outer ones only"));
        }
        let place = self.cx.place.take();
        let inside = |what: &str| place.as_ref().map(|place| place.inside(what));
        self.cx.place = inside(&kept_for(layer, &spec));
        let is_plain = self.source_range.is_some();
        let Entered {
            spec,
            volume,
            range,
            note,
        } = match layer.name == COW.name {
            true => self.enter_cow(spec),
            false => enter(layer, spec, &self.volume, &self.steps, is_plain, &self.cx),
        }
        .map_err(|error| error.in_layer(layer.name))?;
        let outer = self.source_range.zip(range);
        self.source_range = outer.and_then(|(outer, inner)| shifted(inner, outer));
        if layer.name == PARTITION.name {
            self.partition = spec.args().get("number").and_then(|text| text.parse().ok());
        }
        tracing::debug!("{}: {spec}: {} bytes", self.name, volume.size());
        // The spec may name an entry by now. What was encrypted is not kept as it is
        // decrypted, nor is what can be written.
        self.cx.place = match layer.name == LUKS.name || !volume.may_be_kept() {
            true => None,
            false => inside(&spec.to_string()),
        };
        self.chain.push(volume.clone());
        self.volume = volume;
        notes.extend(note);
        self.steps.push(Step {
            layer: spec,
            evidence,
            notes,
        });
        Ok(())
    }

    fn enter_cow(&self, spec: LayerSpec) -> Result<Entered> {
        let (volume, note) = cow::open_on(&self.volume, spec.args(), &self.base(), &self.cx)?;
        Ok(Entered {
            spec,
            volume,
            range: None,
            note,
        })
    }

    /// Probes the innermost volume.
    pub(super) fn look(&mut self, pick: &Pick, raw: bool) -> Result<Found> {
        if self.volume.size() == 0 {
            let what = format!("{} is empty", self.what());
            return Err(Error::new(Kind::NotThisFormat, what));
        }
        let bytes = read_sample(&self.volume)?;
        let sample = bytes.as_sample();
        let content = fs::recognise(&sample);
        let weight = content.as_ref().map(|(_, confidence)| *confidence);
        let wants_partition = matches!(pick, Pick::Partition(_));

        let layer = strongest(&sample).filter(|_| !raw);
        let table = match (PARTITION.probe)(&sample) {
            Verdict::Yes {
                confidence,
                evidence,
            } if !raw || wants_partition => Some((confidence, evidence)),
            _ => None,
        };
        if let Some((layer, confidence, evidence)) = layer
            && weight.is_none_or(|weight| confidence >= weight)
            && table.as_ref().is_none_or(|(table, _)| confidence >= *table)
        {
            return Ok(Found::Layer(layer.name.parse()?, evidence));
        }
        if let (false, Some((damage, before))) = (raw, damaged_footer(&sample)) {
            self.note_damaged_footer(&damage, before);
        }
        if let Some((confidence, evidence)) = table
            && (wants_partition || weight.is_none_or(|weight| confidence > weight))
        {
            return Ok(Found::Table(evidence));
        }
        Ok(Found::Content(match content {
            Some((info, _)) if info.class == Class::FileSystem => Content::FileSystem(info),
            Some((info, _)) => Content::Other(info),
            None => Content::Bytes,
        }))
    }

    /// Says of the innermost volume that it may be a fixed vhd.
    fn note_damaged_footer(&mut self, damage: &Error, before: u64) {
        if self
            .steps
            .last()
            .is_some_and(|step| step.layer.name() == COW.name)
        {
            // It was said of what is below.
            return;
        }
        let steps = self.steps.iter();
        let outer: String = steps
            .map(|step| format!("--layer {} ", step.layer))
            .collect();
        let note = format!(
            "the last 512 bytes look like the footer of a vhd, and {damage}: they are taken for a part of \
             the disk; {outer}--layer offset:0,size={before} leaves them out"
        );
        let notes = match self.steps.last_mut() {
            Some(step) => &mut step.notes,
            None => &mut self.source_notes,
        };
        tracing::warn!("{}: {note}", self.name);
        notes.push(note);
    }

    /// Keeps the partitions, and chooses one, or a volume on them, unless the whole is meant.
    pub(super) fn choose(
        &mut self,
        partitions: Partitions,
        pick: &Pick,
        looks_like_root: LooksLikeRoot<'_>,
    ) -> Result<Chosen> {
        let (slot, name) = match partitions.table {
            Some(_) => (&mut self.partitions, PARTITION.name),
            None => (&mut self.group, ""),
        };
        let partitions = slot.insert(partitions);
        let chosen = match pick {
            Pick::Auto => partitions.root(looks_like_root).map(Some),
            Pick::Partition(name) => match (partitions.named(name), partitions.locked(name)?) {
                (Err(error), Some(entry)) if error.kind() == Kind::OutOfRange => {
                    self.is_inside = true;
                    Ok(Some(entry))
                }
                (named, _) => named.map(Some),
            },
            Pick::Disk => {
                if self.volume.geometry().access != Access::FirstPass {
                    partitions.look()?;
                }
                Ok(None)
            }
        };
        let chosen = chosen.map_err(|error| match name {
            "" => error,
            name => error.in_layer(name),
        })?;
        Ok(match chosen {
            None => Chosen::Whole,
            Some(Entry::Partition(index)) => {
                let entry = partitions.entries().get(index);
                // Indices come from the list itself.
                Chosen::Partition(entry.map_or(0, |entry| entry.number))
            }
            Some(Entry::Volume(index)) => {
                let choice = partitions.volumes()?.choices.get(index);
                Chosen::Volume(choice.map_or_else(Vec::new, |choice| choice.path.clone()))
            }
        })
    }

    /// Opens what was chosen from a table that was found by `evidence`.
    pub(super) fn enter_chosen(
        &mut self,
        chosen: Chosen,
        evidence: &str,
        pick: &mut Pick,
        purpose: Purpose,
    ) -> Result<()> {
        match chosen {
            Chosen::Whole => return Ok(()),
            Chosen::Partition(number) => {
                let spec = LayerSpec::with_value(PARTITION.name, &number.to_string())?;
                let notes = self.table_notes();
                self.enter(spec, evidence.to_owned(), notes)?;
            }
            Chosen::Volume(path) => {
                for (spec, why) in path {
                    self.enter(spec, why, Vec::new())?;
                }
            }
        }
        if std::mem::take(&mut self.is_inside) {
            return Ok(());
        }
        *pick = match purpose {
            Purpose::FileSystem => Pick::Auto,
            // What was asked for, whatever it holds.
            Purpose::Bytes => Pick::Disk,
        };
        Ok(())
    }

    fn table_notes(&self) -> Vec<String> {
        let table = self.partitions.as_ref();
        let table = table.and_then(|partitions| partitions.table.as_ref());
        table.map_or_else(Vec::new, |table| {
            let damage = table.damage.iter().cloned();
            table.notes.iter().cloned().chain(damage).collect()
        })
    }

    pub(super) fn named(&self, error: Error) -> Error {
        error.in_layer(PARTITION.name)
    }

    pub(super) fn finish(self, content: Content) -> Result<Resolved> {
        let plan = Plan {
            source: self.name.to_owned(),
            layers: self.steps.iter().map(|step| step.layer.clone()).collect(),
            partition: self.partition,
            content: content.clone(),
        };
        let mut known = Vec::new();
        if let Some(partitions) = &self.partitions {
            let all = 0..partitions.entries().len();
            known.extend(all.map(|index| partitions.known_content(index).cloned()));
            // What is served was looked at as a volume, not as a partition.
            let served = self.steps.last().map(|step| step.layer.name()) == Some(PARTITION.name);
            let mut entries = partitions.entries().iter();
            let chosen = entries.position(|entry| Some(entry.number) == self.partition);
            if let (true, Content::FileSystem(info) | Content::Other(info)) = (served, &content)
                && let Some(slot) = chosen.and_then(|index| known.get_mut(index))
            {
                *slot = Some(info.clone());
            }
        }
        let specs: Vec<LayerSpec> = self.steps.iter().map(|step| step.layer.clone()).collect();
        let volumes = [&self.group, &self.partitions];
        let volumes = volumes
            .into_iter()
            .flatten()
            .filter_map(Partitions::known_volumes)
            .find(|volumes| !volumes.is_empty() || !volumes.notes.is_empty());
        let mut infos = volumes.map_or_else(Vec::new, |volumes| volumes.infos(&specs));
        // What is served was looked at as the content.
        let served = self.steps.last().map(|step| is_member(&step.layer));
        if let (Some(true), Content::FileSystem(info) | Content::Other(info)) = (served, &content)
            && let Some(chosen) = infos.iter_mut().rfind(|info| info.chosen)
        {
            chosen.content = Some(info.clone());
        }
        Ok(Resolved {
            volume_notes: volumes.map_or_else(Vec::new, |volumes| volumes.notes.clone()),
            volumes: infos,
            plan,
            volume: self.volume,
            chain: self.chain,
            source_notes: self.source_notes,
            steps: self.steps,
            table: self.partitions.and_then(|partitions| partitions.table),
            partitions: known,
            content,
            source_range: self.source_range,
        })
    }
}

/// The range `inner` of the range `outer` of something.
fn shifted(inner: ByteRange, outer: ByteRange) -> Option<ByteRange> {
    let start = outer.start().checked_add(inner.start())?;
    ByteRange::new(start, inner.len()).filter(|range| outer.contains(*range))
}
