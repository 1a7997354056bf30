-- How the values of the ten commonest measurements lie, in each of their units.
select
    coalesce(
        measured.concept_name, cast(measurement.measurement_concept_id as varchar)
    ) as measurement_name,
    coalesce(unit.concept_name, cast(measurement.unit_concept_id as varchar)) as unit_name,
    count(*) as results,
    count(distinct measurement.person_id) as persons,
    percentile_cont(0.05) within group (order by measurement.value_as_number) as p05,
    percentile_cont(0.5) within group (order by measurement.value_as_number) as p50,
    percentile_cont(0.95) within group (order by measurement.value_as_number) as p95
from measurement
left join concept as measured on measurement.measurement_concept_id = measured.concept_id
left join concept as unit on measurement.unit_concept_id = unit.concept_id
where measurement.value_as_number is not null
group by
    measured.concept_name,
    measurement.measurement_concept_id,
    unit.concept_name,
    measurement.unit_concept_id
order by results desc, measurement.measurement_concept_id, measurement.unit_concept_id
limit 10
