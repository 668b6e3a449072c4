//! Compute shaders, compiled.

/// What a kernel does with a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It only reads it.
    Read,
    /// It may write it.
    Write,
}

/// A compute shader as text. Its entry point is `main`, its parameters are the uniform at binding 0 of group 0, and its
/// buffers are at the bindings from 1 on.
#[derive(Clone, Copy, Debug)]
pub struct KernelSource<'a> {
    /// What it is called, in messages and in times.
    pub name: &'static str,
    /// WGSL.
    pub wgsl: &'a str,
    /// What it does with each of its buffers.
    pub bindings: &'a [Access],
    /// Values of its override constants.
    pub constants: &'a [(&'a str, f64)],
}

impl KernelSource<'_> {
    /// What tells it from others.
    pub(crate) fn key(&self) -> String {
        format!("{} {:?} {}", self.name, self.constants, self.wgsl)
    }
}

/// A compute shader, compiled for a device.
#[derive(Debug)]
pub struct Kernel {
    pub(crate) name: &'static str,
    pub(crate) pipeline: wgpu::ComputePipeline,
    pub(crate) layout: wgpu::BindGroupLayout,
    pub(crate) num_buffers: usize,
}

impl Kernel {
    /// What it is called.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    pub(crate) fn compile(device: &wgpu::Device, source: &KernelSource<'_>) -> Self {
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some(source.name),
            source: wgpu::ShaderSource::Wgsl(source.wgsl.into()),
        });
        let entry = |binding: usize, ty, has_dynamic_offset| wgpu::BindGroupLayoutEntry {
            binding: binding as u32,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset, min_binding_size: None },
            count: None,
        };
        let mut entries = vec![entry(0, wgpu::BufferBindingType::Uniform, true)];
        entries.extend(source.bindings.iter().enumerate().map(|(index, access)| {
            let read_only = *access == Access::Read;
            entry(index + 1, wgpu::BufferBindingType::Storage { read_only }, false)
        }));
        let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some(source.name),
            entries: &entries,
        });
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(source.name),
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(source.name),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: source.constants,
                ..Default::default()
            },
            cache: None,
        });
        Self { name: source.name, pipeline, layout, num_buffers: source.bindings.len() }
    }
}
